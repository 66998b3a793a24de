"""Predict the loss floor of every student width from a teacher and an SAE in memory, and query the result."""

from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge

from tl_distill_floor import load_sae, load_teacher, predict_floor

model: TransformerBridge = load_teacher("tiny-prose").model  # or TransformerBridge.boot_transformers(name)
sae: SAE = load_sae("tiny-prose-sae").sae  # or SAE.from_pretrained(release, sae_id)

# Fewer steps than the default of 1,000, for a quick look.
floor = predict_floor(model, sae, widths=[32, 64, 128], n_tokens=20_000, steps=100)

print(f"{floor.n_features:,} features, sparsity {floor.alpha:.4f}, critical width {floor.critical_width:.0f}")
for width, loss, (low, high) in zip(floor.widths, floor.feature_floor, floor.sampling_interval, strict=True):
    print(f"width {width:4d}: floor {loss:.4f} {floor.unit} ({low:.4f} to {high:.4f}), {len(floor.lost(width)):,} lost")
print("narrowest student that loses at most a tenth of the total:", floor.width_for(max_loss=0.1 * floor.total_loss))
