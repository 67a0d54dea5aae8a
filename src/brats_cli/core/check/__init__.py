"""Is a data set complete and sound? The rules, the report on every case, and repaired copies."""
