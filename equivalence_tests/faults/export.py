"""Faults that test_export.py must catch."""

from . import Fault

FAULTS = [
    Fault("the rule itself exported", "accelerated.rules.rule",
          "copy.deepcopy(self.inference())", "self.inference()",
          "test_an_exported_module_gives_the_scores_of_its_rule", "a copy"),
    Fault("exported as it trains", "accelerated.rules.rule",
          "copy.deepcopy(self.inference()).eval()", "copy.deepcopy(self.inference())",
          "test_an_exported_module_gives_the_scores_of_its_rule", "in evaluation mode"),
    Fault("the model's scores for the rule's", "accelerated.rules.rule",
          "return Inference(self)", "return self.model",
          "test_an_exported_module_gives_the_scores_of_its_rule", "the same scores"),
    Fault("graph of one size of batches", "accelerated.forward_forward",
          "if not torch.compiler.is_exporting():", "if True:",
          "test_pytorch_exports_it_for_batches_of_any_size", "batch"),
    Fault("images flattened in another order", "accelerated.rules.forward_forward",
          "return x if self.takes_tokens and x.is_floating_point() else self.begin(x)",
          "return x if self.takes_tokens and x.is_floating_point() else self.begin(x.transpose(1, -1))",
          "test_an_exported_module_flattens_what_the_model_flattens", "the same scores of images"),
]  # fmt: skip
