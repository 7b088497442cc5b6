"""Build the optimizer that a config names."""

import torch
from torch import nn

from captcha_ray.recipes.config import TrainConfig


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the config's update rule over all parameters, fused if torch has a fused one."""
    parameters = list(model.parameters())
    lr, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr, momentum=config.momentum, weight_decay=decay, fused=True)
        case "rmsprop":  # alpha is Keras' rho; torch's own default is .99
            return torch.optim.RMSprop(parameters, lr, alpha=0.9, momentum=config.momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, weight_decay=decay, fused=True)
