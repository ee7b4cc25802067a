//! sdm
