"""Files for schedulers: SLURM, KubeRay, Ray clusters, SkyPilot."""
