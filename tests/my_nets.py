"""Networks of a user's own, kept to the contract and not."""

import torch
from torch import nn


class Plain(nn.Module):
    """Two linear layers."""

    def __init__(self, obs_shape, num_outputs, config):
        super().__init__()
        self.actor = nn.Linear(obs_shape[0], num_outputs)
        self.critic = nn.Linear(obs_shape[0], 1)

    def forward(self, obs):
        return self.actor(obs), self.critic(obs).squeeze(-1)


class Tempered(Plain):
    """Its logits are divided by a number of Python's, which somebody may change."""

    temperature = 1.0

    def forward(self, obs):
        out, value = super().forward(obs)
        return out / float(self.temperature), value


class Parts(nn.Module):
    """Sees a dict."""

    def __init__(self, obs_shape, num_outputs, config):
        super().__init__()
        assert list(obs_shape) == ["0", "1"]
        self.net = nn.Linear(2, num_outputs + 1)

    def forward(self, obs):
        out = self.net(obs["1"]) + obs["0"].float()[:, None]
        return out[:, :-1], out[:, -1]


class Recurrent(nn.Module):
    """A GRU cell."""

    def __init__(self, obs_shape, num_outputs, config):
        super().__init__()
        self.cell = nn.GRUCell(obs_shape[0], config.hidden_sizes[-1])
        self.last = nn.Linear(config.hidden_sizes[-1], num_outputs + 1)

    def initial_state(self, batch_size):
        return (torch.zeros(batch_size, self.cell.hidden_size),)

    def forward(self, obs, state):
        h = self.cell(obs, state[0])
        out = self.last(h)
        return out[:, :-1], out[:, -1], (h,)


class Forgetful(Recurrent):
    """Answers without its state."""

    def forward(self, obs, state):
        return super().forward(obs, state)[:2]


class Wide(Plain):
    """One output too many."""

    def forward(self, obs):
        out, value = super().forward(obs)
        return torch.cat([out, out[:, :1]], -1), value


class Column(Plain):
    """A value of [B, 1]."""

    def forward(self, obs):
        out, value = super().forward(obs)
        return out, value[:, None]


class Bare(Plain):
    """No value."""

    def forward(self, obs):
        return super().forward(obs)[0]


class Dropout(Plain):
    """Another answer each time."""

    def forward(self, obs):
        return super().forward(nn.functional.dropout(obs, 0.5, training=True))


class Batch(Plain):
    """Each row depends on the others."""

    def forward(self, obs):
        return super().forward(obs - obs.mean(0))


class Infinite(Plain):
    """Not finite."""

    def forward(self, obs):
        out, value = super().forward(obs)
        return out / 0, value


class Raises(Plain):
    """Has a bug."""

    def forward(self, obs):
        raise RuntimeError("no such layer")


class Unmakable(nn.Module):
    """Takes other arguments."""

    def __init__(self, obs_shape):
        super().__init__()


NOT_A_CLASS = 3


class Buffered(Plain):
    """Has a random projection that is not trained."""

    def __init__(self, obs_shape, num_outputs, config):
        super().__init__(obs_shape, num_outputs, config)
        self.register_buffer("projection", torch.randn(obs_shape[0], obs_shape[0]))

    def forward(self, obs):
        return super().forward(obs @ self.projection)


class Frozen(Plain):
    """Half of it is not to be trained."""

    def __init__(self, obs_shape, num_outputs, config):
        super().__init__(obs_shape, num_outputs, config)
        self.actor.requires_grad_(False)


class Double(Plain):
    """Computes in float64."""

    def __init__(self, obs_shape, num_outputs, config):
        super().__init__(obs_shape, num_outputs, config)
        self.double()


class DropoutOfValue(Plain):
    """Another value each time."""

    def forward(self, obs):
        out, _ = super().forward(obs)
        return out, self.critic(nn.functional.dropout(obs, 0.5, training=True)).squeeze(-1)


class Lazy(Plain):
    """Learns from its first observation how wide it is."""

    def __init__(self, obs_shape, num_outputs, config):
        super().__init__(obs_shape, num_outputs, config)
        self.actor, self.critic = nn.LazyLinear(num_outputs), nn.LazyLinear(1)
