"""The parts of Ray that it calls private are still there, and do what they are used for."""

import inspect

import ray.train.torch
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.services import find_node_ids
from ray._raylet import GcsClient
from ray.autoscaler.sdk import request_resources

from captcha_ray.runtime import ray_train


def test_ray_train_asks_its_trainer_for_a_handler_of_ctrl_c() -> None:
    base = ray.train.torch.TorchTrainer
    assert list(inspect.signature(base._register_sigint_handler).parameters) == ["self", "controller"]
    assert "_register_sigint_handler" in inspect.getsource(inspect.getmodule(base.__mro__[1]))
    assert ray_train.InterruptibleTrainer._register_sigint_handler is not base._register_sigint_handler


def test_a_lost_worker_is_an_error_of_ray_train() -> None:
    assert issubclass(ray_train.LOST_WORKER_ERROR, Exception)
    assert ray_train.LOST_WORKER_ERROR.__module__.startswith("ray.train")


def test_what_sessions_and_capacity_need_can_be_called() -> None:
    assert "address" in inspect.signature(init_grpc_channel).parameters
    assert not inspect.signature(find_node_ids).parameters
    assert isinstance(DEBUG_AUTOSCALING_STATUS, str)
    assert callable(GcsClient)
    assert {"bundles"} <= set(inspect.signature(request_resources).parameters)
