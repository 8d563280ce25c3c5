"""Faults that test_step.py must catch."""

from . import Fault

FAULTS = [
    Fault("weight decay left out of a plain step", "accelerated.rules.stepping",
          "_add(parameter, update, 1 - rate * decay, -rate)", "_add(parameter, update, 1.0, -rate)",
          "test_every_optimizer", "are not close"),
    Fault("the first momentum damped", "accelerated.rules.stepping",
          "buffer, momentum, share = torch.zeros_like(parameter), 0.0, 1.0",
          "buffer, momentum = torch.zeros_like(parameter), 0.0",
          "test_every_optimizer", "are not close"),
    Fault("momentum kept aside", "accelerated.rules.stepping",
          '                state["momentum_buffer"] = buffer\n', "",
          "test_every_optimizer", "The keys of the mappings do not match"),
    Fault("Nesterov's step taken for a plain one", "accelerated.rules.stepping",
          'UNKNOWN = "nesterov", ', "UNKNOWN = ",
          "test_every_optimizer", "are not close"),
    Fault("factors of tokens not scaled", "accelerated.rules.stepping",
          "return Factors(number * self.left, self.right)", "return self",
          "test_labels_of_tokens_some_of_them_ignored", "are not close"),
    Fault("a frozen factor added", "accelerated.rules.rule",
          "        if held.requires_grad\n", "        if held.requires_grad or isinstance(gradient, Factors)\n",
          "test_a_frozen_layer_stays_as_it_is", "AssertionError"),
    Fault("hooks of the optimizer not called", "accelerated.rules.stepping",
          "if any((optimizer._optimizer_step_pre_hooks,", "if all((False,",
          "test_whoever_watches_the_optimizer_sees_one_step", "all gradients but those of the last layer"),
    Fault("a scheduler told nothing", "accelerated.rules.stepping",
          "self.optimizer._opt_called = True", "pass",
          "test_a_scheduler_is_content_and_its_rate_counts", "a scheduler warns"),
    Fault("the weight's gradient held", "accelerated.rules.local.units",
          "weight = weight_update(delta.T, x)", "weight = product(torch.matmul, delta.T, x)",
          "test_no_gradient_of_a_large_weight_is_held", "assert"),
]  # fmt: skip
