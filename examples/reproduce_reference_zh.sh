#!/usr/bin/env bash
# From raw text to model_cards/simmim-tiny-zh, with all figures of its card: two hours of one CPU core.
#
#   bash examples/reproduce_reference_zh.sh DATA [OUTPUT]
#
# DATA holds zhwiki_sents/ (train.txt.gz, heldout.txt.gz: a sentence a line) and stsb_zh/. Stopping, FEWER and CARD: see
# reference_runs.sh.
source "$(dirname "$0")/reference_runs.sh" "${1:?give the folder DATA}" "${2:-reference-zh}" model_cards/simmim-tiny-zh

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
    pretrain "$name" --train_file "$data/zhwiki_sents/train.txt.gz" \
        --validation_file "$data/zhwiki_sents/heldout.txt.gz" --tokenizer_name "$output/tokenizer8192" \
        --text_config "$backbone" --per_device_train_batch_size "$batch" --max_steps $((2600 / fewer)) \
        --learning_rate 2e-3 "$@"
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
