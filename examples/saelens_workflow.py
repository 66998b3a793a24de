"""Train an SAE with SAELens's own runner, then use it to predict the floor of the teacher's students."""

import tempfile

from datasets import Dataset
from sae_lens import (
    SAE,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TopKTrainingSAEConfig,
)

from tl_distill_floor import load_teacher, load_text, predict_floor

CONTEXT_SIZE, N_TOKENS = 256, 131_072  # a few steps for this example; a useful SAE needs millions of tokens

model = load_teacher("tiny-prose").model  # or TransformerBridge.boot_transformers(name)
sequences = load_text(None, model.tokenizer, context_size=CONTEXT_SIZE)  # embedded text; or a file name instead of None
dataset = Dataset.from_dict({"input_ids": [row.numpy() for row in sequences.read()]}).with_format("torch")

runner = LanguageModelSAETrainingRunner(
    LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(
            d_in=model.cfg.d_model, d_sae=512, k=32, normalize_activations="expected_average_only_in"
        ),
        model_name="tiny-prose",
        hook_name="blocks.1.hook_out",
        is_dataset_tokenized=True,
        streaming=False,
        context_size=CONTEXT_SIZE,
        training_tokens=N_TOKENS,
        train_batch_size_tokens=2048,
        store_batch_size_prompts=16,
        n_batches_in_buffer=64,
        lr=3e-3,
        lr_warm_up_steps=5,
        n_batches_for_norm_estimate=10,
        exclude_special_tokens=True,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
    ),
    override_model=model,
    override_dataset=dataset,
)
with tempfile.TemporaryDirectory() as folder:
    runner.run().save_inference_model(folder)
    sae = SAE.load_from_disk(folder)

floor = predict_floor(model, sae, widths=[32, 64, 128], n_tokens=20_000, steps=100)
print(f"{floor.n_features:,} features, {floor.stats.fvu:.0%} of the variance unexplained")
for width, loss in zip(floor.widths, floor.feature_floor, strict=True):
    print(f"width {width:4d}: a student loses at least {loss:.3f} nats per token of what this SAE explains")
