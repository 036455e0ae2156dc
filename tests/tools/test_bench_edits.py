"""What the bench of edits says about its own table."""

from benches.edits import BLEND, CEILING, DIRECT, FREE, FREE_PASTED, PASTED, PLAIN, verdicts
from retrace.evaluation.scores import Summary


def summary(method: str, colour: float, shape: float, keep: float) -> Summary:
    rest = dict.fromkeys(
        ("all_right", "keep_published", "keep_ssim", "exact", "reconstruction", "latent", "look",
         "seconds", "published_mse", "published_ssim"), 0.0)  # fmt: skip
    return Summary(
        method=method, count=10, right={"colour": colour, "shape": shape}, keep=keep, rows=(0, 0),
        **rest,
    )  # fmt: skip


def table(pasted: Summary) -> list[Summary]:
    return [
        summary(CEILING, 0, 0, 38.0),
        summary(PLAIN, 1.0, 0.9, 22.0),
        summary(FREE, 0.8, 0.7, 26.0),
        summary(FREE_PASTED, 0.8, 0.7, 34.5),
        summary(BLEND, 1.0, 0.8, 33.0),
        pasted,
    ]


def test_aims_are_measured_against_the_right_lines():
    (said,) = verdicts(table(summary(PASTED, 1.0, 0.7, 36.0)))
    title, *lines = said.splitlines()
    assert title == f"{PASTED}:"
    assert lines == [
        "- colour right: 100.0 %, aim 90 %, reached",
        "- shape right: 70.0 %, aim 75 %, missed",
        "- kept, against the autoencoder: -2.0 dB, aim -3 dB, reached",
        f"- kept, against {PLAIN}: 14.0 dB, aim 2 dB, reached",
        f"- kept, against {FREE}: 10.0 dB, aim 2 dB, reached",
        f"- kept, against {FREE_PASTED}: 1.5 dB, aim 2 dB, missed",
        f"- edits right, against {PLAIN}: -10.0 points, aim 0 points, missed",
        f"- edits right, against {FREE}: 10.0 points, aim 0 points, reached",
    ]


def test_the_furthest_method_of_the_table_is_judged():
    some = [summary(CEILING, 0, 0, 38.0), summary(PLAIN, 1, 1, 22.0), summary(FREE, 1, 1, 26.0)]
    (said,) = verdicts([*some, summary(DIRECT, 1, 1, 28.0)])
    assert said.startswith(f"{DIRECT}:\n")
    assert verdicts(some) == []
