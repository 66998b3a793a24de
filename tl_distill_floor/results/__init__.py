"""Frozen records of what was measured and predicted; each can be saved, loaded and displayed.

- `feature_stats`: `FeatureStats`, the measured statistics of an SAE's features.
- `teacher_fingerprint`: `TeacherFingerprint`, what a teacher computes for fixed token ids.
- `feature_sums`: sums over tokens that can be merged.
- `block_sums`: sums over consecutive blocks of text, for the bootstrap.
- `codes`: `Codes`, SAE codes of a sample of tokens.
- `contexts`: `FeatureContexts`, the text on which each feature fires most strongly.
- `promoted_tokens`: `PromotedTokens`, the tokens that some features promote.
- `simulation`: `Simulation`, the losses of bottleneck students.
- `tail_loss`: `TailLoss`, the loss when the least costly features are removed.
- `head_floor`: `HeadFloor`, an estimate of the least loss of any student of a width.
- `expected_loss`: the loss that a trained student is expected to reach, from students of other teachers.
- `floor_prediction`: `FloorPrediction`, the predicted loss of every student width.
- `feature_floors`: `FeatureFloors`, the part of it that features predict.
- `student_floors`: `StudentFloors`, the part of it that says what trained students lose.
- `floor_curve`: `FloorCurve`, interpolation of floors over widths.
- `floor_files`: the files of a floor prediction.
- `lost_features`: `LostFeatures` and `OneFeature`, the features that a student loses.
- `student_loss`: `StudentLoss`, the loss of a trained student with its error.
- `student`: `StudentResult`, one distilled student.
- `calibration`: `Calibration`, a fit of student losses to predictions.
- `plan`: `Plan`, the student to train, and `Pilots`, narrow students to train before it.
- `byte_sizes`: numbers of bytes as text.
- `diagnosis`: `Diagnosis`, what limits the loss of a student.
- `probes`: `ProbeResult`, `Probes` and `Decodability`, the results of linear probes.
- `sparse_probes`: `SparseProbes`, the features that concepts rest on.
- `toy`: `ToyResult`, the floors of trained toy models.
- `record_files`: base classes of records that are displayed, and that are saved as one file.
"""
