"""A Ray Train group that is led by the process that launches it.

Ray Train leads a group from an actor of its own, and starts three more beside it: one that takes the group's placement
back if that actor dies, one in which workers wait for each other when they report to Ray, and one that hands out Ray
Data. Each is a process that imports Ray Train, seconds on a small machine. Here the launching process leads: when it
ends, its Ray job does, and Ray takes back the workers and their placement. Our workers report to the run and read its
files.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.train import Result
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup, state, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util import client


class Nobody:
    """Made in place of the actor in which workers would wait for each other."""

    @classmethod
    def options(cls, **_: Any) -> type[Nobody]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> str:
        return "nobody"


# Ray Train has no setting for either. No other group is led by this process.
worker_group.SynchronizationActor = Nobody
state._shutdown_sync_actor = lambda _: None

NOT_OURS = (PlacementGroupCleanerCallback, DatasetsCallback)


class LedGroup(WorkerGroup):
    """Workers that know of no actor that leads them."""

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[number] for name, values in train_context_args.items()},
                )
                for number, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class Leader(TrainController):
    """Starts the group, watches it, and starts it again."""

    worker_group_cls = LedGroup

    def _start_worker_group(self, *args: Any, **more: Any) -> None:
        super()._start_worker_group(*args, **more)
        # Ray counts groups that find no room over the whole training; a lost machine is waited for after each loss.
        self._failure_policy._controller_failures = 0

    def lead(self) -> Result:
        """Until training has ended, well or not."""
        try:
            asyncio.run(self.run())
        except BaseException:
            # One that was still starting takes itself back.
            if self._worker_group is not None and self._worker_group.has_started():
                self._worker_group.abort()
            raise
        return self.get_result()


class GroupTrainer(DataParallelTrainer):
    """`fit()` as Ray's own, without processes beside the workers."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, NOT_OURS)]

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Result:
        if client.ray.is_connected():
            # A process that speaks to the cluster through a client (ray://) is no part of it, and cannot lead.
            return super()._initialize_and_run_controller(**controller_init_kwargs)
        return Leader(**controller_init_kwargs).lead()
