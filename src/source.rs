//! Where objects come from: manifests today.
