"""`PromotedTokens`: the tokens that some features promote, as far as they were computed."""

from dataclasses import dataclass
from pathlib import Path

from tl_distill_floor.storage.versioned import load_record, resolve_file, save_record

PROMOTED_FILE, KIND = "promoted.json", "promoted-tokens"


@dataclass(frozen=True)
class PromotedTokens:
    """The tokens whose logits each feature raises most, for the features for which they were computed."""

    stats: str
    """Digest of the statistics whose features these are; see `FeatureStats.digest`."""
    tokens: dict[int, tuple[str, ...]]
    """By feature, the tokens in falling order of the increase of their logit; empty if the decoder row is zero, or the
    hook point is not on the residual stream."""

    def merge(self, other: "PromotedTokens") -> "PromotedTokens":
        """Return the tokens of the features of both, in rising order of the feature.

        Args:
            other: tokens of features of the same statistics.

        Returns:
            The merged tokens.

        Raises:
            ValueError: the statistics differ.

        Example:
            >>> PromotedTokens("0f", {7: (" snow",)}).merge(PromotedTokens("0f", {2: (" ice",)})).tokens
            {2: (' ice',), 7: (' snow',)}
        """
        if self.stats != other.stats:
            raise ValueError("the promoted tokens are of the features of different statistics")
        return PromotedTokens(self.stats, dict(sorted((self.tokens | other.tokens).items())))

    def save(self, path: str | Path) -> Path:
        """Save the tokens as JSON.

        Args:
            path: the file, or a directory, which gets `promoted.json`.

        Returns:
            Path of the file.

        Raises:
            InputError: the file cannot be written.

        Example:
            >>> floor.promoted.save("runs/tiny")  # doctest: +SKIP
            PosixPath('runs/tiny/promoted.json')
        """
        return save_record(self, resolve_file(path, PROMOTED_FILE), KIND)

    @classmethod
    def load(cls, path: str | Path) -> "PromotedTokens":
        """Load tokens that `save` wrote.

        Args:
            path: the file, or its directory.

        Returns:
            The tokens.

        Raises:
            InputError: the file is missing, truncated, in another format, or of another version.

        Example:
            >>> PromotedTokens.load("runs/tiny").tokens[17]  # doctest: +SKIP
        """
        file = resolve_file(path, PROMOTED_FILE)
        return load_record(cls, file, KIND, f"tl-floor lost --promoted after deleting {file}")
