"""What a line reads off a model, what a width is expected to keep of that, and labels of one's own."""

from tl_distill_floor import Probing, load_teacher, predict_floor, probe, survival

teacher = load_teacher("tiny-prose")
hook = "blocks.1.hook_resid_post"

# Rows of your own: a text and its label, or words and a label for each; rows of one document stay on one side.
words = ["the", "of", "and", "to", "in", "that", "for", "it", "was", "as", "with", "be"]
rows = [{"words": [w, w.upper()], "label": ["lower", "upper"], "document": str(i)} for i, w in enumerate(words)]
found = probe(teacher, hook, rows, splits=2)
print(f"{found.task}: {found.mean_accuracy:.0%} of {found.n_items} words, {found.mean_majority:.0%} by guessing")

# The embedded passages: who wrote them (coarse), and the class of every word and of the next (fine).
floor = predict_floor(teacher, "tiny-prose-sae", widths=[16, 64], n_tokens=20_000, steps=100)
quick = Probing(per_class=60, splits=2, bottleneck_steps=100, feature_tokens=0)
probes = survival(floor, teacher, "tiny-prose-sae", widths=[16, 64], probing=quick)
for task in probes.tasks:
    (whole,) = probes.of(task, "teacher")
    left = ", ".join(f"{r.retained(whole):.0%} at width {r.width}" for r in probes.of(task, "bottleneck"))
    print(f"{task}: {whole.mean_accuracy:.0%} in the teacher; expected to be left of its gain: {left}")
