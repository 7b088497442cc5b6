"""Events come from workers to the driver in order, all of them, and what is lost of them costs nothing else."""

import dataclasses
import threading

import pytest
import ray

from captcha_ray.runtime import progress_channel, ray_session
from captcha_ray.runtime.progress_channel import ProgressChannel


@dataclasses.dataclass(frozen=True)
class Number:
    value: int


@pytest.mark.usefixtures("ray_cluster")
def test_what_workers_send_before_the_end_is_delivered_in_order() -> None:
    seen: list[Number] = []
    with ProgressChannel(seen.append) as channel:
        send = channel.sender()

        @ray.remote(num_cpus=0)
        def work() -> None:
            for number in range(100):
                send(Number(number))

        ray.get(work.remote())
    assert seen == [Number(number) for number in range(100)]


@pytest.mark.usefixtures("ray_cluster")
def test_a_silence_is_told_with_its_length_until_an_event_comes() -> None:
    silences: list[float] = []
    grown, heard = threading.Event(), threading.Event()

    def on_silence(seconds: float) -> None:
        silences.append(seconds)
        if len(silences) >= 3:
            grown.set()

    with ProgressChannel(lambda event: heard.set(), on_silence) as channel:
        assert grown.wait(60)
        so_far = list(silences)
        channel.sender()(Number(1))
        assert heard.wait(60)
    assert so_far == sorted(so_far)
    assert so_far[0] >= progress_channel.LOOK_S / 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_lost_mailbox_costs_progress_and_no_more() -> None:
    seen: list[Number] = []
    with ProgressChannel(seen.append) as channel:
        ray.kill(channel._mailbox)
        channel.sender()(Number(1))
        assert channel.deliver() == 0
    assert seen == []


def test_a_channel_lives_on_the_drivers_node(ray_cluster: ray_session.Cluster) -> None:
    with ProgressChannel(lambda event: None) as channel:
        node = ray.get(channel._mailbox.take.options(num_returns=1).remote())
        assert node == []
    assert ray_session.here().node_id == ray.get_runtime_context().get_node_id()
