# What reproduce_reference.sh and reproduce_reference_zh.sh share. Sourced with DATA, OUTPUT and the folder of the card.
#
# A run that was stopped goes on when the command is given again. With FEWER=500 every run has 500 times fewer steps, to
# try the script; CARD is the folder that is written instead of the shipped one.
set -euo pipefail
mkdir -p "$2"
data=$(realpath "$1") output=$(realpath "$2") fewer=${FEWER:-1}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
card=$(realpath -m "${CARD:-$3}")

# The run of this name with these options of `simmim pretrain`, unless it is there.
pretrain() {
    local name=$1 resume=()
    shift
    [ -f "$output/$name/results.json" ] && return
    compgen -G "$output/$name/checkpoint-*" > /dev/null && resume=(--resume_from_checkpoint last)
    simmim pretrain "$@" --max_seq_length 128 --logging_steps 50 --save_steps 0.1 --save_total_limit 2 --report_to none \
        --output_dir "$output/$name" "${resume[@]}"
}
