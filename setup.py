"""How `pip install .` builds the package: a small base install, and extras for what only some users need."""

import re
from pathlib import Path

from setuptools import find_packages, setup


here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"', (here / "modeling_ofa/__init__.py").read_text(encoding="utf-8"), re.M)

# The tests ran with these lower bounds and, as constraints.txt pins them, with the newest releases; of torch with
# 2.13.0 only, 2.6 being what transformers asks for. README.md, "What was tried", has the table.
install_requires = [
    "numpy>=1.26",
    "pillow>=10.1",  # ImageFont.load_default(size)
    "safetensors>=0.8",
    "torch>=2.6",
    "transformers>=5.17,<6",
]

extras = {
    "train": ["accelerate>=1.15", "datasets>=5.2", "evaluate>=0.4.6", "peft>=0.21"],
    "metrics": ["datasets>=5.2", "evaluate>=0.4.6", "rouge-score>=0.1.2"],
    "meteor": ["pycocoevalcap>=1.2"],  # 104 MB, and needs Java
    "ocr": ["opencc-python-reimplemented>=0.1.7"],  # simplifies Chinese targets
    "app": ["gradio>=6.31"],  # the page of `ofa app`
    "browser": ["playwright>=1.65"],  # drives a Chromium through that page, in slow tests and for its screenshots
    "world": ["resvg-py>=0.5"],  # draws the scenes that the embedded checkpoint is trained on
    "docs": [  # builds the pages, and runs the notebooks
        "furo>=2025.12.19",
        "ipykernel>=7",
        "myst-parser>=4.0.1",
        "nbclient>=0.11",
        "nbformat>=5.11",
        "sphinx>=8.1.3",
    ],
    "test": [
        "matplotlib>=3.8",
        "parameterized>=0.9",
        "psutil>=5.9",
        "pycocotools>=2.0.8",
        "pytest>=8",
        "pytest-xdist>=3.6",
        "scikit-learn>=1.5",
        "setuptools>=62.3",
    ],
    "dev": ["mypy>=1.15", "ruff>=0.14"],
}
extras["all"] = sorted({one for name, group in extras.items() for one in group if name not in ("browser", "meteor")})

setup(
    name="modeling-ofa",
    version=version.group(1),
    description="OFA, the unified vision-and-language model, for Hugging Face transformers",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    packages=find_packages(include=["modeling_ofa", "modeling_ofa.*", "convert", "convert.*"]),
    package_data={"modeling_ofa": ["assets/**"]},
    python_requires=">=3.10",
    install_requires=install_requires,
    extras_require=extras,
    entry_points={"console_scripts": ["ofa = modeling_ofa.cli:main"]},
    zip_safe=False,
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
