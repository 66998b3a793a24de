"""Walk over the model families of `transformers`: which students can be built, and what their reported losses are.

Each family has a tiny teacher with random weights. Where a start is not refused, the student of the teacher's width has
the teacher's logits, and a short distillation reports the loss of the saved student, computed here by plain
`transformers`. `REFUSED` has the families that are refused, with a part of the reason.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch.nn.functional import kl_div

from tl_distill_floor import DistillConfig, InputError, build_student, distill
from tl_distill_floor.sources.teachers import special_token_ids

pytestmark = pytest.mark.slow
N_VOCABULARY, WIDTH, HALF = 384, 64, 32
SPECIAL = {"vocab_size": N_VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
Factory = Callable[[], Any]


def decoder(name: str, **fields: Any) -> Factory:
    """Return a function that creates the configuration of a family with Llama's field names."""
    sizes = {
        "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    return lambda: getattr(transformers, name)(**{**SPECIAL, **sizes, **fields})


def other(name: str, **fields: Any) -> Factory:
    """Return a function that creates the configuration of a family with field names of its own."""
    return lambda: getattr(transformers, name)(**{**SPECIAL, **fields})


FAMILIES: dict[str, Factory] = {
    "llama": decoder("LlamaConfig"),
    "llama_tied_bias": decoder("LlamaConfig", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama_headdim": decoder("LlamaConfig", head_dim=32),
    "llama3_rope": decoder(
        "LlamaConfig",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral": decoder("MistralConfig", sliding_window=16),
    "ministral3": decoder("Ministral3Config", head_dim=16),
    "qwen2": decoder("Qwen2Config"),
    "qwen2_tied": decoder("Qwen2Config", tie_word_embeddings=True),
    "qwen3": decoder("Qwen3Config", head_dim=16),
    "gemma": decoder("GemmaConfig", head_dim=16),
    "gemma2": decoder("Gemma2Config", head_dim=16, query_pre_attn_scalar=16, sliding_window=16),
    "gemma2_nocap": decoder(
        "Gemma2Config", head_dim=16, query_pre_attn_scalar=16, sliding_window=16, final_logit_softcapping=None
    ),
    "gemma3": decoder("Gemma3TextConfig", head_dim=16, query_pre_attn_scalar=16, sliding_window=16),
    "gpt2": other("GPT2Config", n_embd=64, n_layer=2, n_head=4, n_positions=128),
    "gpt2_untied": other(
        "GPT2Config", n_embd=64, n_layer=2, n_head=4, n_positions=128, tie_word_embeddings=False, n_inner=96
    ),
    "gptneo": other(
        "GPTNeoConfig",
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=128,
    ),
    "gptneox": decoder(
        "GPTNeoXConfig", rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    ),
    "gptneox_seq": decoder("GPTNeoXConfig", use_parallel_residual=False),
    "gptj": other("GPTJConfig", n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=128),
    "opt": other(
        "OPTConfig",
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        max_position_embeddings=128,
    ),
    "opt350_proj": other(
        "OPTConfig",
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
        do_layer_norm_before=False,
    ),
    "bloom": other("BloomConfig", hidden_size=64, n_layer=2, n_head=4),
    "falcon_mqa": other(
        "FalconConfig",
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        multi_query=True,
        new_decoder_architecture=False,
        alibi=False,
    ),
    "falcon_mha": other(
        "FalconConfig",
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        multi_query=False,
        new_decoder_architecture=False,
        alibi=False,
    ),
    "falcon_new": other(
        "FalconConfig",
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        alibi=False,
    ),
    "phi": decoder(
        "PhiConfig",
        num_key_value_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "phi3": decoder("Phi3Config"),
    "phi3_longrope": decoder(
        "Phi3Config",
        max_position_embeddings=256,
        original_max_position_embeddings=128,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.05 * i for i in range(8)],
            "long_factor": [1.0 + 0.3 * i for i in range(8)],
            "original_max_position_embeddings": 128,
        },
    ),
    "olmo": decoder("OlmoConfig"),
    "olmo2": decoder("Olmo2Config", num_key_value_heads=4),
    "olmo2_gqa": decoder("Olmo2Config"),
    "olmo3": decoder("Olmo3Config", num_key_value_heads=4, sliding_window=16),
    "olmoe": decoder("OlmoeConfig", num_key_value_heads=4, num_experts=4, num_experts_per_tok=2),
    "mixtral": decoder("MixtralConfig", num_local_experts=4, num_experts_per_tok=2, head_dim=16),
    "qwen2moe": decoder(
        "Qwen2MoeConfig",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=96,
    ),
    "qwen3moe": decoder("Qwen3MoeConfig", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, head_dim=16),
    "phimoe": decoder("PhimoeConfig", num_local_experts=4, num_experts_per_tok=2),
    "gptoss": decoder(
        "GptOssConfig",
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=16,
        sliding_window=16,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "stablelm": decoder("StableLmConfig"),
    "stablelm_par": decoder("StableLmConfig", use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True),
    "starcoder2": decoder("Starcoder2Config"),
    "gptbigcode_mqa": other("GPTBigCodeConfig", n_embd=64, n_layer=2, n_head=4, n_positions=128, multi_query=True),
    "gptbigcode_mha": other("GPTBigCodeConfig", n_embd=64, n_layer=2, n_head=4, n_positions=128, multi_query=False),
    "codegen": other("CodeGenConfig", n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=128),
    "mpt": other("MptConfig", d_model=64, n_layers=2, n_heads=4, expansion_ratio=2, max_seq_len=128),
    "granite": decoder(
        "GraniteConfig",
        logits_scaling=1.0,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.0625,
    ),
    "granite_scaled": decoder(
        "GraniteConfig",
        logits_scaling=8.0,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.0625,
    ),
    "cohere": decoder("CohereConfig"),
    "cohere2": decoder("Cohere2Config", sliding_window=16),
    "glm": decoder("GlmConfig", head_dim=16),
    "glm4": decoder("Glm4Config", head_dim=16),
    "smollm3": decoder("SmolLM3Config", no_rope_layers=[1, 0]),
    "exaone4": decoder("Exaone4Config", sliding_window=16, sliding_window_pattern=2),
    "seedoss": decoder("SeedOssConfig", head_dim=16),
    "arcee": decoder("ArceeConfig"),
    "apertus": decoder("ApertusConfig"),
    "nemotron": decoder("NemotronConfig"),
    "ernie4_5": decoder("Ernie4_5Config", head_dim=16),
    "helium": decoder("HeliumConfig", head_dim=16),
    "hunyuan": decoder("HunYuanDenseV1Config", head_dim=16),
    "nanochat": decoder("NanoChatConfig"),
    "vaultgemma": decoder("VaultGemmaConfig", head_dim=16, query_pre_attn_scalar=16, sliding_window=16),
    "xglm": other("XGLMConfig", d_model=64, ffn_dim=128, num_layers=2, attention_heads=4, max_position_embeddings=128),
    "openai_gpt": other("OpenAIGPTConfig", n_embd=64, n_layer=2, n_head=4, n_positions=128),
    "biogpt": other(
        "BioGptConfig",
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
    ),
    "deepseekv3": decoder(
        "DeepseekV3Config",
        num_key_value_heads=4,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        v_head_dim=16,
        qk_nope_head_dim=8,
    ),
    "mamba": other("MambaConfig", hidden_size=64, num_hidden_layers=2, state_size=8),
    "mamba2": other(
        "Mamba2Config",
        hidden_size=64,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=16,
        n_groups=1,
        chunk_size=16,
    ),
    "lfm2": decoder("Lfm2Config", layer_types=["conv", "full_attention"]),
    "jamba": decoder("JambaConfig", num_experts=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False),
    "recurrentgemma": decoder("RecurrentGemmaConfig", num_hidden_layers=3, attention_window_size=16),
    "bamba": decoder("BambaConfig", mamba_n_heads=8, mamba_d_head=16, mamba_d_state=8, attn_layer_indices=[1]),
    "falconh1": decoder(
        "FalconH1Config", head_dim=16, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8
    ),
    "qwen3next": decoder(
        "Qwen3NextConfig",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        head_dim=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    "rwkv": other("RwkvConfig", hidden_size=64, num_hidden_layers=2, context_length=128),
    "moderbert_dec": decoder("ModernBertDecoderConfig", local_attention=16),
    "persimmon": decoder("PersimmonConfig"),
    "bitnet": decoder("BitNetConfig"),
}


NO_ADAPTER = "Could not determine supported architecture"
"""TransformerLens has no adapter for the family."""
FAILS = "the forward pass of the teacher fails"
"""The TransformerBridge of the teacher cannot be run."""
DIFFERS = "give logits that differ from the TransformerBridge's"
"""The TransformerBridge computes another model than `transformers`."""
NO_ROTATION = "cannot be rotated without a change of its logits"
"""The family does more with the residual stream than norms, linear maps and additions."""
REFUSED = {
    "falcon_new": {"teacher": "split_with_sizes"},
    "gptbigcode_mha": {"teacher": "only supports multi_query=True"},
    **{key: {"teacher": NO_ADAPTER} for key in ("phimoe", "helium", "biogpt", "persimmon")},
    **dict.fromkeys(
        ("gptneox", "gptneox_seq", "codegen", "qwen3next"), dict.fromkeys(("random", "teacher-slice", "svd"), FAILS)
    ),
    **dict.fromkeys(("cohere", "cohere2", "hunyuan"), dict.fromkeys(("random", "teacher-slice", "svd"), DIFFERS)),
    **{key: {"svd": NO_ROTATION} for key in ("xglm", "moderbert_dec", "rwkv")},
    "stablelm_par": dict.fromkeys(("teacher-slice", "svd"), "operations of this family depend on the width"),
}
"""Part of the reason by start, for the families that are refused."""


class Walk(NamedTuple):
    """What was built for one family."""

    refusals: dict[str, str]
    """Reason by start, of the starts that were refused."""
    differences: dict[str, float]
    """Largest difference between the logits of the student of full width and the teacher's, by start."""
    reported: float
    """Loss that a distillation reported, nats per token; NaN if it was refused."""
    computed: float
    """Loss of the saved student."""


def save_teacher(config: Any, tokenizer: Any, directory: Path) -> Any:
    """Save a model whose weights, biases and scales are all random, and return it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


@torch.no_grad()
def mean_kl(teacher: Any, student: Any, ids: torch.Tensor, special_ids: list[int]) -> float:
    """Return KL(teacher ‖ student) in nats per token, without the first position and special tokens."""
    counted = ~torch.isin(ids[:, 1:], torch.tensor(special_ids))
    log_p, log_q = (model(ids, use_cache=False).logits[:, 1:].double().log_softmax(-1) for model in (teacher, student))
    return float(kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)[counted].mean())


def walk(config: Any, tokenizer: Any, directory: Path) -> Walk:
    """Build all students of one family, and distil one of them."""
    from transformer_lens.model_bridge import TransformerBridge

    plain = save_teacher(config, tokenizer, directory / "teacher")
    ids = torch.randint(1, N_VOCABULARY, (24, 24), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 0
    refusals: dict[str, str] = {}
    differences: dict[str, float] = {}
    try:
        bridge = TransformerBridge.boot_transformers(str(directory / "teacher"), device="cpu")
    except Exception as error:  # families that TransformerLens does not support
        return Walk({"teacher": str(error).splitlines()[0]}, {}, float("nan"), float("nan"))
    for start in ("random", "teacher-slice", "svd"):
        try:
            with torch.no_grad():
                full = build_student(bridge, WIDTH, start=start)(ids, use_cache=False).logits
                if start != "random":
                    differences[start] = float((full - plain(ids, use_cache=False).logits).abs().max())
                assert build_student(bridge, HALF, start=start)(ids, use_cache=False).logits.isfinite().all()
        except InputError as error:
            refusals[start] = str(error)
    best = next((start for start in ("svd", "teacher-slice", "random") if start not in refusals), None)
    if best is None:
        return Walk(refusals, differences, float("nan"), float("nan"))
    settings = DistillConfig(n_tokens=2 * 4 * 24, batch_size=4, n_heldout_tokens=8 * 24)
    try:
        result = distill(
            bridge, HALF, ids[:16], heldout=ids[16:], start=best, out=directory / "students", config=settings
        )
    except InputError as error:
        return Walk({**refusals, "distill": str(error)}, differences, float("nan"), float("nan"))
    student = transformers.AutoModelForCausalLM.from_pretrained(result.path).eval()
    return Walk(refusals, differences, result.loss, mean_kl(plain, student, ids[16:], special_token_ids(bridge)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_students_of_the_family_are_right_or_refused(family: str, tokenizer: Any, tmp_path: Path) -> None:
    """Warnings are those of the families' own code."""
    walked = walk(FAMILIES[family](), tokenizer, tmp_path)
    expected = REFUSED.get(family, {})
    assert walked.refusals.keys() == expected.keys()
    assert all(reason in walked.refusals[start] for start, reason in expected.items())
    assert all(difference < 1e-3 for difference in walked.differences.values())
    if not expected.keys() & {"teacher", "random"}:
        assert walked.reported == pytest.approx(walked.computed, rel=1e-3)


def test_most_families_can_be_distilled() -> None:
    assert sum(not REFUSED.get(family, {}).keys() & {"teacher", "random"} for family in FAMILIES) >= 60
