"""The `deploy` section of the spec."""

from __future__ import annotations

from pydantic import Field, model_validator

from components.config import Config


class ReplicasConfig(Config):
    """How many copies of the model answer."""

    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _rules(self) -> ReplicasConfig:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}; raise max")
        return self


class DeployConfig(Config):
    """How the model is served."""

    replicas: ReplicasConfig = ReplicasConfig()
    max_batch_size: int = Field(32, ge=1)
    """Requests that one forward pass answers together."""
    batch_wait_ms: float = Field(2.0, ge=0)
    """Longest wait for a batch to fill."""
    max_queued_requests: int = Field(256, ge=1)
    """Requests that may wait; more are answered with 503."""
    max_body_mib: float = Field(16.0, gt=0)
    """Largest request body; more is answered with 413."""
    threads: int = Field(1, ge=1)
    """Threads a replica computes with."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs PENSTOCK_API_KEYS_FILE."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
