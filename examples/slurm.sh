#!/bin/bash
# A run of `simmim pretrain` on several machines under SLURM: a process for each GPU, without another launcher, so that
# the processes get SLURM's signal and SLURM gets their exit code. Two minutes before the time is over they save and end
# with code 75; the job queues itself again and goes on from there.
#   sbatch examples/slurm.sh settings.yaml
#SBATCH --job-name=simmim
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120

output_dir=${OUTPUT_DIR:-my-encoder}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec simmim pretrain "$@"' simmim \
    "$@" --output_dir "$output_dir" --resume_from_checkpoint last_if_any
code=$?
if [ "$code" = 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
