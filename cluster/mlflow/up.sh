#!/bin/bash
# MLflow with PostgreSQL, artifact proxy and passwords on one machine, without Docker. Ctrl-C ends both.
#
#   cluster/mlflow/up.sh [FOLDER]           FOLDER holds everything: database, artifacts, passwords [~/premed-mlflow]
#
# Needs PostgreSQL's programs (Debian: apt-get install postgresql) and Python 3.11+. Settings, by environment:
#   MLFLOW_HOST, MLFLOW_PORT                where it listens [127.0.0.1, 5000]
#   MLFLOW_SERVER_ALLOWED_HOSTS             by which names it may be called; needed where MLFLOW_HOST is not 127.0.0.1
#   MLFLOW_ARTIFACTS_DESTINATION            where artifacts go, as s3://bucket/premed [FOLDER/artifacts]
#   MLFLOW_WORKERS                          processes [2]
#   POSTGRES_PORT                           of the database, on 127.0.0.1 alone [5433]
#   PYTHON                                  one that has requirements.txt; else FOLDER/venv is made
# It speaks HTTP: across machines, put TLS before it (a reverse proxy), for passwords travel in the clear otherwise.
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-$HOME/premed-mlflow}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
host=${MLFLOW_HOST:-127.0.0.1}
port=${MLFLOW_PORT:-5000}
postgres_port=${POSTGRES_PORT:-5433}
artifacts=${MLFLOW_ARTIFACTS_DESTINATION:-$folder/artifacts}

fail() {
    echo "up.sh: $1" >&2
    exit 2
}

# ---- the programs

PATH="$PATH:$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)" # Debian keeps them off PATH
command -v initdb >/dev/null || fail "PostgreSQL is not installed: apt-get install postgresql"
python=${PYTHON:-$folder/venv/bin/python}
if [[ ! -x $python ]]; then
    echo "installing MLflow into $folder/venv (some minutes, once)" >&2
    python3 -m venv "$folder/venv"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
fi
"$python" -c 'import flask_wtf, mlflow, psycopg2' || fail "$python lacks what $here/requirements.txt names"

# ---- the passwords, made once

secret() {
    [[ -s $folder/$1 ]] || "$python" -c 'import secrets; print(secrets.token_urlsafe(24), end="")' > "$folder/$1"
    cat "$folder/$1"
}
postgres_password=$(secret postgres.password)
admin_password=$(secret admin.password)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret cookies.key)
export MLFLOW_FLASK_SERVER_SECRET_KEY

# ---- the database, by a user of its own: PostgreSQL refuses to be root

as_postgres=()
database=$folder/postgres
if [[ $(id -u) = 0 ]]; then
    as_postgres=(runuser -u postgres --)
    id postgres >/dev/null 2>&1 || fail "run it as another user than root: there is no user postgres here"
    mkdir -p "$database"
    chown postgres "$database"
    chmod 711 "$folder" # so that postgres gets to its own folder; the passwords stay unreadable
    "${as_postgres[@]}" test -x "$database" || fail "the user postgres cannot reach $database; name another folder"
fi
if [[ ! -f $database/PG_VERSION ]]; then
    cp "$folder/postgres.password" "$folder/postgres.copy"
    [[ ${#as_postgres[@]} = 0 ]] || chown postgres "$folder/postgres.copy"
    "${as_postgres[@]}" initdb --pgdata="$database" --username=mlflow --auth=scram-sha-256 --encoding=UTF8 --locale=C \
        --pwfile="$folder/postgres.copy" >"$folder/initdb.log" || fail "initdb failed: $folder/initdb.log"
    rm "$folder/postgres.copy"
fi
stop() {
    trap - EXIT INT TERM
    if [[ -n ${server:-} ]]; then
        kill -- "-$server" 2>/dev/null || true # all its processes; it leads a session of its own
        wait "$server" || true
    fi
    "${as_postgres[@]}" pg_ctl --pgdata="$database" --mode=fast --silent stop || true
}
trap stop EXIT
trap 'exit 130' INT TERM
"${as_postgres[@]}" pg_ctl --pgdata="$database" --log="$database/server.log" --silent --wait --timeout=120 start \
    --options="-p $postgres_port -c listen_addresses=127.0.0.1 -c unix_socket_directories=''" ||
    fail "PostgreSQL did not start: $database/server.log"
export PGPASSWORD=$postgres_password
for name in mlflow mlflow_auth; do
    psql=(psql --host=127.0.0.1 --port="$postgres_port" --username=mlflow --dbname=postgres --quiet --tuples-only)
    [[ -n $("${psql[@]}" --command="SELECT 1 FROM pg_database WHERE datname = '$name'") ]] ||
        "${psql[@]}" --command="CREATE DATABASE $name"
done

# ---- the server

address=postgresql+psycopg2://mlflow:$postgres_password@127.0.0.1:$postgres_port
sed -e "s|@DATABASE@|$address/mlflow_auth|" -e "s|@PASSWORD@|$admin_password|" "$here/basic_auth.ini" >"$folder/basic_auth.ini"
export MLFLOW_AUTH_CONFIG_PATH=$folder/basic_auth.ini MLFLOW_BACKEND_STORE_URI=$address/mlflow MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_UVICORN_OPTS=${MLFLOW_UVICORN_OPTS:---timeout-worker-healthcheck 60} # 5 s, and a busy machine's are killed
cd "$folder"
setsid "$python" -m mlflow server --app-name basic-auth --host "$host" --port "$port" --workers "${MLFLOW_WORKERS:-2}" \
    --artifacts-destination "$artifacts" &
server=$!
cat >&2 <<TOLD
MLflow comes up at http://$host:$port. For premed, and to log in:
  export MLFLOW_TRACKING_URI=http://$host:$port MLFLOW_TRACKING_USERNAME=admin
  export MLFLOW_TRACKING_PASSWORD=\$(cat $folder/admin.password)
TOLD
wait "$server"
