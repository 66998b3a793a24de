"""Probe your own labels on a teacher's activation, then forecast which labels survive at each width."""

from tl_distill_floor import ProbeConfig, load_teacher, predict_floor, probe, probe_run

teacher = load_teacher("tiny-prose")
hook = "blocks.1.hook_resid_post"

# Your own rows: a text and its label, or words and a label for each word. The rows of one document stay in one split.
words = ["the", "of", "and", "to", "in", "that", "for", "it", "was", "as", "with", "be"]
rows = [{"words": [w, w.upper()], "label": ["lower", "upper"], "document": str(i)} for i, w in enumerate(words)]
result = probe(teacher, hook, rows)
print(f"{result.task}: {result.mean_accuracy:.0%} of {result.n_items} words, {result.mean_majority:.0%} by guessing")

# The embedded passages: their author (coarse), and the class of every word and of the next word (fine).
floor = predict_floor(teacher, "tiny-prose-sae", widths=[16, 64], n_tokens=20_000, steps=100)
quick = ProbeConfig(per_class=60, n_splits=2, bottleneck_steps=100, n_feature_tokens=0)
probes = probe_run(floor, teacher, "tiny-prose-sae", widths=[16, 64], config=quick)
for task in probes.tasks:
    (in_teacher,) = probes.of(task, "teacher")
    left = ", ".join(f"{r.retained(in_teacher):.0%} at width {r.width}" for r in probes.of(task, "bottleneck"))
    print(f"{task}: accuracy {in_teacher.mean_accuracy:.0%} in the teacher; forecast share of its gain: {left}")
