"""Faults that test_devices.py must catch."""

from . import Fault

FAULTS = [
    Fault(
        "labels looked at on any device",
        "accelerated.rules.output_loss",
        "    if readable(y):  # elsewhere looking would wait for the device\n",
        "    if True:\n",
        "test_no_step_waits",
        "reads numbers",
    ),
    Fault(
        "wrong labels drawn on the CPU",
        "accelerated.forward_forward",
        "generator=generator, device=labels.device)",
        "generator=generator).to(labels.device)",
        "test_no_step_waits",
        "on cpu",
    ),
    Fault(
        "coefficients sent at every step",
        "accelerated.orthogonality",
        "@cache\ndef _polar_coefficients",
        "def _polar_coefficients",
        "test_no_step_waits",
        "sent by the host",
    ),
    Fault(
        "the CPU's generator alone",
        "accelerated._arrays",
        '    if device.type == "cuda":\n        own',
        "    if False:\n        own",
        "test_the_devices_own_generator_is_kept_too",
        "assert",
    ),
    Fault(
        "draws left as they are",
        "accelerated._arrays",
        "            generator.set_state(state)\n",
        "            pass\n",
        "test_the_devices_own_generator_is_kept_too",
        "kept",
    ),
    Fault(
        "draws repeated from a graph",
        "accelerated.rules.module_layer",
        "            _DRAWING.update(self.modules)\n",
        "",
        "test_a_graph_cannot_draw_again",
        "accepted",
    ),
    Fault(
        "defects copied by waiting",
        "accelerated.rules.orthogonality",
        'defects.to("cpu", non_blocking=True)',
        'defects.to("cpu", non_blocking=False)',
        "test_defects_on_their_way_are_waited_for_by_an_event",
        "a copy that waits",
    ),
    Fault(
        "defects read before they are there",
        "accelerated.rules.orthogonality",
        "            self._event.synchronize()\n",
        "            pass\n",
        "test_defects_on_their_way_are_waited_for_by_an_event",
        "waited for before it is read",
    ),
]
