"""The pipeline steps as kfp lightweight components. Each is a thin wrapper: the work is the stage's own `run`.

All parameters are strings, because kfp passes lists and mappings through floats. kfp embeds each function's source,
so a step imports what it needs inside.
"""

from kfp import dsl

IMAGE = "penstock:0.1.0"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def data(config: str, inputs: str, code: str) -> str:
    from pipelines.worker import main

    return main("data", config, inputs, code)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tune(config: str, inputs: str, code: str) -> str:
    from pipelines.worker import main

    return main("tune", config, inputs, code)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(config: str, inputs: str, code: str) -> str:
    from pipelines.worker import main

    return main("train", config, inputs, code)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compress(config: str, inputs: str, code: str) -> str:
    from pipelines.worker import main

    return main("compress", config, inputs, code)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(config: str, inputs: str, code: str) -> str:
    from pipelines.worker import main

    return main("evaluate", config, inputs, code)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(evaluation: str) -> str:
    from pipelines.worker import read_verdict

    return read_verdict(evaluation)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(config: str, inputs: str, code: str) -> str:
    from pipelines.worker import main

    return main("register", config, inputs, code)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(config: str, inputs: str, code: str) -> str:
    from pipelines.worker import main

    return main("deploy", config, inputs, code)


STEPS = {"data": data, "tune": tune, "train": train, "compress": compress, "evaluate": evaluate, "register": register,
         "deploy": deploy}  # fmt: skip
