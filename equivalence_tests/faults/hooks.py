"""Faults that test_hooks.py must catch."""

from . import Fault

FAULTS = [
    Fault("forward hooks passed by", "accelerated.rules.watch",
          "if has_forward_hooks(module) and not calls(module):", "if False:",
          "test_a_forward_hook_sees_the_module_once_or_is_refused", "called 0 times"),
    Fault("backward hooks passed by", "accelerated.rules.watch",
          "if has_backward_hooks(module) and not differentiates:", "if False:",
          "test_hooks_that_a_rule_does_not_call_are_refused", "backward"),
    Fault("hooks of gradients passed by", "accelerated.rules.watch",
          "parameter._post_accumulate_grad_hooks or", "False or",
          "test_hooks_that_a_rule_does_not_call_are_refused", "of a gradient"),
    Fault("a replaced layer passed by", "accelerated.rules.watch",
          "if module._modules != children:", "if module._modules.keys() != children.keys():",
          "test_layers_that_come_and_go_are_named", "one for another"),
    Fault("pruned weights passed by", "accelerated.rules.watch",
          "if set(module._parameters) != parameters:", "if False:",
          "test_weights_that_are_pruned_after_the_rule_was_built_are_named", "startswith"),
    Fault("a rectifier's hooks passed by", "accelerated.rules.local.units",
          "self.rectifier is None or has_forward_hooks(self.rectifier) or has_forward_hooks(self.module)",
          "self.rectifier is None or has_forward_hooks(self.module)",
          "test_a_forward_hook_sees_the_module_once_or_is_refused", "called 0 times"),
    Fault("activities written over what a hook has seen", "accelerated.rules.local.units",
          " or has_forward_hooks(self.module)", "",
          "test_a_forward_hook_sees_the_module_once_or_is_refused", "another output"),
    Fault("hooks called on the meta device", "accelerated.rules.local.units",
          "self.module.forward(x)", "self.module(x)",
          "test_a_forward_hook_sees_the_module_once_or_is_refused", "called 2 times"),
    Fault("parameters that processes share not looked at", "accelerated.rules.watch",
          "            check_alone(name, parameter, rule)", "            check_alone(name, module, rule)",
          "test_a_parameter_that_processes_share_is_refused", "in a step"),
]  # fmt: skip
