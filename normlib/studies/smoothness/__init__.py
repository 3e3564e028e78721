"""Chapter 4, internal covariate shift or smoothness: Santurkar et al. (2018), their critics, and the rival explanations."""
