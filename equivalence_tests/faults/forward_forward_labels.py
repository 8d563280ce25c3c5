"""Faults that test_forward_forward_labels.py must catch."""

from . import Fault

FAULTS = [
    Fault("labels of tokens over the last numbers", "accelerated.forward_forward",
          "torch.cat([code[:, None].expand(-1, x.shape[1], -1), x[:, :, code.shape[1] :]], dim=2)",
          "torch.cat([x[:, :, code.shape[1] :], code[:, None].expand(-1, x.shape[1], -1)], dim=2)",
          "test_where_the_label_of_tokens_is", "label of every token"),
    Fault("neutral label too bright", "accelerated.forward_forward",
          "(x.shape[0], num_classes), amplitude / num_classes)", "(x.shape[0], num_classes), amplitude)",
          "test_where_the_label_is", "neutral pixels"),
    Fault("neutral label in memory that was never written", "accelerated.forward_forward",
          "x.new_full((x.shape[0], num_classes), amplitude / num_classes)", "x.new_empty((x.shape[0], num_classes))",
          "test_overlays", "overlays[1]: not finite"),
    Fault("first scoring layer skipped", "accelerated.forward_forward",
          "in islice(passes, first_layer, None)", "in islice(passes, min(1, first_layer), None)",
          "test_label_scores", "label_scores"),
    Fault("labels and samples mixed up in scores", "accelerated.forward_forward",
          "unflatten(0, (len(labels), -1)))\n    return torch.cat(scores).T",
          "unflatten(0, (-1, len(labels))).T)\n    return torch.cat(scores).T",
          "test_label_scores", "label_scores"),
    Fault("the first part's labels in every part", "accelerated.forward_forward",
          "first(labels[:, None].expand",
          "first(torch.arange(len(labels), device=x.device)[:, None].expand",
          "test_scores_in_parts_are_those_of_one_pass", "in parts"),
    Fault("feature maps passed on before pooling in features", "accelerated.forward_forward",
          "z = rms_norm(activity(layer.outlet, activity(layer.steps, layer.value(z))))\n"
          "        found.append(z.flatten(1))",
          "h = activity(layer.steps, layer.value(z))\n        z = rms_norm(activity(layer.outlet, h))\n"
          "        found.append(rms_norm(h).flatten(1))",
          "test_features", "neutral_features"),
    Fault("planes of another label", "accelerated.forward_forward",
          "maps[self.labels]", "maps.flip(0)[self.labels]",
          "test_labelled_inputs_are_streams_like_any_other", "put in"),
    Fault("labels learn by the pixels that they replace", "accelerated.forward_forward",
          "        if self.replaced:\n            weight[:, : self.num_classes] = of_labels\n        else:",
          "        if not self.replaced:",
          "test_labelled_inputs_are_streams_like_any_other", "put in"),
    Fault("label planes before the image in the reference", "reference.forward_forward",
          "np.concatenate([x, np.broadcast_to(code, (*code.shape[:2], *x.shape[2:]))], axis=1)",
          "np.concatenate([np.broadcast_to(code, (*code.shape[:2], *x.shape[2:])), x], axis=1)",
          "test_where_the_label_is", "the sample"),
]  # fmt: skip
