"""Frozen records of what was measured and predicted; they can be saved, loaded and displayed.

- `feature_stats`: `FeatureStats`, the measured statistics of an SAE's features.
- `feature_sums`: sums over tokens that can be merged.
- `codes`: `Codes`, SAE codes of a sample of tokens.
- `contexts`: `FeatureContexts`, what each feature fires on.
- `simulation`: `Simulation`, what bottleneck students reached.
- `tail_loss`: `TailLoss`, the loss when features beyond a rank are removed.
- `floor_prediction`: `FloorPrediction`, the floor of every student width.
- `lost_features`: the features that a student loses.
- `student`: `StudentResult`, one distilled student.
- `calibration`: `Calibration`, predictions fitted to trained students.
- `plan`: `Plan`, the student to train.
- `probes`: `ProbeResult`, `Probes` and `Decodability`.
- `displayable`: the mixin by which records show themselves.
"""
