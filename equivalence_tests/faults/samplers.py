"""Faults that test_samplers.py must catch."""

from . import Fault

FAULTS = [
    Fault("orthogonal matrices of uneven signs", "reference.orthogonality",
          "q = q * np.sign(np.diag(r))", "q = q * 1.0",
          "test_orthogonal_is_uniform", "pvalue"),
    Fault("feedback ten times as large", "accelerated.ftp",
          "bound = scale * (6 / num_classes) ** 0.5", "bound = 10 * scale * (6 / num_classes) ** 0.5",
          "test_feedback_of_ftp", "pvalue"),
    Fault("kernels' feedback as large as of a single tap", "reference.layers",
          "np.sqrt(6 / prod(shape[1:]))", "np.sqrt(6 / shape[1])",
          "test_feedback_of_the_relatives", "pvalue"),
    Fault("projection ten times too large", "accelerated.pepita",
          "scale: float = 0.05", "scale: float = 0.5",
          "test_error_projection_of_pepita", "pvalue"),
    Fault("wrong labels that may be right", "accelerated.forward_forward",
          "torch.randint(1, num_classes", "torch.randint(0, num_classes",
          "test_wrong_labels_are_wrong_and_even", "np.any"),
    Fault("read-outs of a variance by their features", "accelerated.scores",
          "deviation = num_classes**-0.5", "deviation = num_features**-0.5",
          "test_read_outs_of_scores", "> 0.0001"),
    Fault("read-outs of a variance by their features in the reference", "reference.scores",
          "deviation = num_classes**-0.5", "deviation = num_features**-0.5",
          "test_read_outs_of_scores", "> 0.0001"),
]  # fmt: skip
