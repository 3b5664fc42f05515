"""Artifacts: folders with a manifest, in a local folder or in S3. See README.md."""

from components.artifacts.artifact import Artifact, Draft, Ref, open_artifact, write_artifact

__all__ = ["Artifact", "Draft", "Ref", "open_artifact", "write_artifact"]
