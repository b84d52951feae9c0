#!/usr/bin/env bash
# From raw text to model_cards/simmim-tiny-zh, with all figures of its card: two hours of one CPU core.
#
#   bash examples/reproduce_reference_zh.sh DATA [OUTPUT]
#
# DATA holds zhwiki_sents/ (train.txt.gz, heldout.txt.gz: a sentence a line) and stsb_zh/. A run that was stopped goes on
# when the command is given again. With FEWER=500 every run has 500 times fewer steps, to try the script; CARD is the
# folder that is written instead of the shipped one.
set -euo pipefail
mkdir -p "${2:-reference-zh}"
data=$(realpath "$1") output=$(realpath "${2:-reference-zh}") fewer=${FEWER:-1}
cd "$(dirname "$0")/.."
card=$(realpath -m "${CARD:-model_cards/simmim-tiny-zh}")

[ -d "$output/tokenizer8192" ] || python - "$data/zhwiki_sents/train.txt.gz" "$output/tokenizer8192" <<'PYTHON'
import sys
from simmim_hf.data import corpora, tokenization

file, folder = sys.argv[1:]
tokenization.train_tokenizer(corpora.load_text([file])["text"][:], vocab_size=8192).save_pretrained(folder)
PYTHON

# All of them 2,600 steps; snippets and mlm read as many tokens, 9.3 million, or each sentence about four times.
train() {
    local name=$1 batch=$2 backbone=$3
    shift 3
    [ -f "$output/$name/results.json" ] && return
    local resume=()
    compgen -G "$output/$name/checkpoint-*" > /dev/null && resume=(--resume_from_checkpoint last)
    simmim pretrain --train_file "$data/zhwiki_sents/train.txt.gz" \
        --validation_file "$data/zhwiki_sents/heldout.txt.gz" --tokenizer_name "$output/tokenizer8192" \
        --text_config "$backbone" --max_seq_length 128 --per_device_train_batch_size "$batch" \
        --max_steps $((2600 / fewer)) --learning_rate 2e-3 --logging_steps 50 --save_steps 0.1 --save_total_limit 2 \
        --report_to none --output_dir "$output/$name" "$@" "${resume[@]}"
}
modernbert='{"model_type": "modernbert", "num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 512, "max_position_embeddings": 512}'
words='{"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}'
train snippets 64 "$modernbert" --objective snippets
train mlm 80 "$modernbert" --objective mlm
train words 64 "$words" --objective snippets --mlm_weight 0 --contrastive_weight 0.3 --contrastive_gradient encoder \
    --pooled_layers last --num_hidden_layers 0

rm -rf "$card"
python model_cards/ship.py --run "$output/snippets" --output_dir "$card"
python model_cards/untrained.py --model "$card" --output_dir "$output/random"
gzip -dc "$data/zhwiki_sents/heldout.txt.gz" > "$output/zhwiki-heldout.txt"
simmim evaluate --model "$card" "$output"/{mlm,words,random} --overwrite_output_dir \
    --tasks "$data"/stsb_zh/{dev,test}.jsonl.gz --output_dir "$card/vectors"
simmim evaluate --model "$card" "$output/mlm" --overwrite_output_dir \
    --tasks "$output/zhwiki-heldout.txt" --output_dir "$card/language"
simmim card --model "$card" --license apache-2.0 --language zh --evaluation "$card"/{vectors,language}
