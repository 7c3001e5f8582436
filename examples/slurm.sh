#!/usr/bin/env bash
# Workers on a Slurm cluster: an array of them, one GPU each. They share the work through the manifest and do
# not know each other, so workers may start, end, be preempted or be added at any time.
#
# Once, on the login node, with a shared file system under $HOME or elsewhere:
#
#   shardgen init "$SHARDGEN_RUN" --foregrounds "$SHARDGEN_FOREGROUNDS" --backgrounds "$SHARDGEN_BACKGROUNDS"
#   # in its shardgen.toml: [manifest] url = "${SHARDGEN_MANIFEST}"
#   #                       [artifacts] url = "/scratch/me/people-artifacts"  (or leave it: beside shardgen.toml)
#   shardgen plan "$SHARDGEN_RUN"
#   sbatch examples/slurm.sh
#   shardgen status "$SHARDGEN_RUN" --watch
#   shardgen merge "$SHARDGEN_RUN" -o people.zip
#
# If one time limit is too short, submit it several times. With --dependency=singleton each waits for the one
# before; otherwise they all work at once. A worker that finds nothing left exits at once, with 0.
#
#SBATCH --job-name=shardgen
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=shardgen-%A_%a.log
# SIGTERM a minute before the time limit, to this script itself, which by then has become the worker.
#SBATCH --signal=B:TERM@60

set -euo pipefail

# Where everything is. The manifest's URL holds a password: keep it in a file that only you can read, as in
#   export SHARDGEN_MANIFEST='postgresql+psycopg://me:PASSWORD@db.example.org/people'
settings=${SHARDGEN_SETTINGS:-$HOME/.config/shardgen.sh}
if [[ -r $settings ]]; then
  # shellcheck source=/dev/null
  source "$settings"
fi
: "${SHARDGEN_RUN:?is not set: the run directory, which every node must reach}"
: "${SHARDGEN_MANIFEST:?is not set: the URL of a PostgreSQL database; SQLite is for one machine}"
: "${SHARDGEN_FOREGROUNDS:?is not set: the folder of foregrounds, as this node sees it}"
: "${SHARDGEN_BACKGROUNDS:?is not set: the folder of backgrounds, as this node sees it}"
export SHARDGEN_RUN SHARDGEN_MANIFEST SHARDGEN_FOREGROUNDS SHARDGEN_BACKGROUNDS

margin=90 # stop work this many seconds before the limit
grace=20  # less than Slurm's KillWait (30 s unless the cluster says otherwise)

# The seconds until the time limit; nothing if there is none.
seconds_left() {
  local left days=0 part seconds=0
  if [[ -n ${SLURM_JOB_END_TIME:-} ]]; then
    echo $((SLURM_JOB_END_TIME - $(date +%s)))
    return
  fi
  [[ -n ${SLURM_JOB_ID:-} ]] || return 0
  left=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %L) # 1-02:03:04, 02:03:04 or 03:04
  [[ $left =~ ^([0-9]+-)?[0-9:]+$ ]] || return 0               # UNLIMITED, NOT_SET
  if [[ $left == *-* ]]; then
    days=${left%%-*} left=${left#*-}
  fi
  for part in ${left//:/ }; do
    seconds=$((seconds * 60 + 10#$part))
  done
  echo $((days * 86400 + seconds))
}

options=(--device "${SHARDGEN_DEVICE:-gpu}" --grace "$grace")
left=$(seconds_left)
if [[ -n $left ]]; then
  if ((left <= 2 * margin)); then
    echo "only $left s are left: too short to start" >&2
    exit 0
  fi
  options+=(--deadline "$((left - margin))s")
fi
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  options+=(--id "slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}_${SLURM_ARRAY_TASK_ID:-0}")
fi

# exec: signals reach the worker itself, and its exit code is the script's: 0 nothing is left, or the deadline
# came; 10-19 you must change something; 30-39 submit it again.
exec shardgen worker "$SHARDGEN_RUN" "${options[@]}"
