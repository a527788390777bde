# shellcheck shell=bash
#
# What test/run and demo/run share: install what is missing, make a workspace,
# run the rest of the script in it as an ordinary user, clean up.
#
# The workspace is a temporary folder with a copy of this source tree and a
# private copy of the server's programs. PostgreSQL finds its files relative to
# its programs, so "make install" with the copy's pg_config installs into the
# workspace: no installation and no cluster of this machine is touched, and
# nothing but the packages needs root.
#
#   $WORKSPACE/src    the source tree, built there
#   $WORKSPACE/log    logs; they stay when something failed
#   $WORKSPACE/tmp    TMPDIR: sockets and clusters of the TAP tests
#   $WORKSPACE/usr…   the server's copy, under the same path as the original
#
# Variables: PGVERSION (15), the server to use; PG_CONFIG, to use another
# installation than Debian's; UPGRADE_FROM, an older version that is wanted as
# well; KEEP=1 to keep the workspace; TMPDIR (/tmp).

PGVERSION=${PGVERSION:-15}
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# What the script inside of the workspace may read of its caller's environment.
PASS_ON=(TERM TESTS REPEAT COVERAGE UPGRADE_FROM PROVE_TESTS PROVE_FLAGS PG_TEST_TIMEOUT_DEFAULT
	TORTURE_MINUTES TORTURE_SEED TORTURE_CLIENTS LOAD_TASKS LOAD_SESSIONS LOAD_PARAMS_MB LOAD_DEAD)

# For programs that are built with sanitizers. A process of the server frees
# nothing at its end, its stack depth is measured on the real stack, a test loads
# a clock of its own before anything else, and another one sends SIGSEGV: whoever
# dies from it is found in the server's log.
SANITIZER_OPTIONS=detect_leaks=0:handle_segv=0:verify_asan_link_order=0:detect_stack_use_after_return=0:abort_on_error=1:print_stacktrace=1

# Print each argument on a line.
say() {
	printf '%s\n' "$@"
}

die() {
	printf 'tasksched: %s\n' "$*" >&2
	exit 1
}

# Call a command until it succeeds, at most so many seconds.
wait_until() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.05
	done
}

#
# Outside of the workspace, perhaps as root
#

missing_packages() {
	local package
	for package; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
			echo "$package"
	done
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif ! command -v sudo >/dev/null; then
		return 1
	elif [ -t 0 ]; then
		sudo "$@"
	else
		sudo -n "$@"
	fi
}

# Install what is missing for building and testing, and the packages named.
prepare() {
	local needed=(gcc libc6-dev make perl "$@") missing
	if [ -z "${PG_CONFIG:-}" ]; then
		needed+=("postgresql-$PGVERSION" "postgresql-server-dev-$PGVERSION")
	fi
	if [ -n "${UPGRADE_FROM:-}" ]; then
		needed+=("postgresql-$UPGRADE_FROM" "postgresql-server-dev-$UPGRADE_FROM")
	fi
	if ! command -v dpkg-query >/dev/null; then
		say "No dpkg here, so nothing is installed; needed are: ${needed[*]}"
		return
	fi
	mapfile -t missing < <(missing_packages "${needed[@]}")
	[ "${#missing[@]}" -gt 0 ] || return 0

	say "Installing, to build and run tasksched here: ${missing[*]} (and what they depend on; no cluster is created)"
	as_root bash "$TOP/test/install-packages" "${missing[@]}" ||
		die "can't install packages; as root, run: bash $TOP/test/install-packages ${missing[*]}"
}

# Where test/build-server keeps servers: an ordinary user has to read it.
server_cache() {
	if [ -n "${SERVER_CACHE:-}" ]; then
		echo "$SERVER_CACHE"
	elif [ "$(id -u)" = 0 ]; then
		echo /var/cache/tasksched
	else
		echo "${XDG_CACHE_HOME:-$HOME/.cache}/tasksched"
	fi
}

# Make the workspace: the folder, the server's copy and the tree's copy.
make_workspace() {
	local base=${TMPDIR:-/tmp} server=${PG_CONFIG:-/usr/lib/postgresql/$PGVERSION/bin/pg_config}
	# Paths of sockets may have 107 bytes.
	[ "${#base}" -le 40 ] || base=/tmp
	WORKSPACE=$(mktemp -d "$base/tasksched.XXXXXX")
	trap leave_workspace EXIT
	trap 'exit 130' INT TERM HUP
	chmod 755 "$WORKSPACE"
	mkdir "$WORKSPACE/log" "$WORKSPACE/tmp" "$WORKSPACE/src"
	if [ -n "${UPGRADE_FROM:-}" ]; then
		copy_server "/usr/lib/postgresql/$UPGRADE_FROM/bin/pg_config"
	fi
	copy_server "$server"
	copy_tree
	[ "$(id -u)" != 0 ] || chown -R "$(ordinary_user):" "$WORKSPACE"
}

# Make a copy of a server the one to use.
copy_server() {
	local original=$1 copy kind folder
	folder=$("$original" --bindir) || die "can't run $original"
	[ -x "$folder/postgres" ] || die "there is no server in $folder"
	case $folder in
		/bin | /usr/bin) die "$original: a server in $folder, among all other programs, can't be copied" ;;
	esac
	copy=$WORKSPACE$folder/pg_config

	for kind in --bindir --pkglibdir --sharedir; do
		folder=$("$original" "$kind")
		mkdir -p "$WORKSPACE$folder"
		cp -a "$folder/." "$WORKSPACE$folder/"
	done
	folder=$("$original" --includedir-server)
	mkdir -p "$WORKSPACE${folder%/*}"
	ln -s "$folder" "$WORKSPACE$folder"

	for kind in --bindir --pkglibdir --sharedir --includedir-server; do
		folder=$("$copy" "$kind") || die "can't run programs in $WORKSPACE (set TMPDIR to another folder)"
		# Else the installation would go into the system.
		[ "$folder" = "$WORKSPACE$("$original" "$kind")" ] ||
			die "the copy of the server looks for its files outside of $WORKSPACE, in $folder"
	done
	PG_CONFIG=$copy
}

# The tree as it is, with what isn't committed, but nothing that was built.
copy_tree() {
	tar -C "$TOP" -cf - --exclude-vcs --exclude='*.o' --exclude='*.bc' --exclude='*.so' \
		--exclude=tmp_check --exclude=tmp_check_iso --exclude=output_iso --exclude=results . |
		tar -C "$WORKSPACE/src" -xf - --no-same-owner
}

# Who runs everything when root calls: somebody whom nothing on this machine
# belongs to, no database server either.
ordinary_user() {
	echo nobody
}

# Run a script of the tree's copy in the workspace, for so many seconds at most.
run_in_workspace() {
	local limit=$1 script=$2 as_user=() environment name
	[ "$(id -u)" != 0 ] ||
		as_user=(setpriv --reuid="$(ordinary_user)" --regid="$(id -g "$(ordinary_user)")" --clear-groups)
	environment=(WORKSPACE="$WORKSPACE" PG_CONFIG="$PG_CONFIG" PATH="${PG_CONFIG%/*}:$PATH"
		HOME="$WORKSPACE" TMPDIR="$WORKSPACE/tmp" LC_ALL=C.UTF-8
		ASAN_OPTIONS="$SANITIZER_OPTIONS:log_path=$WORKSPACE/log/sanitizer"
		UBSAN_OPTIONS="$SANITIZER_OPTIONS:log_path=$WORKSPACE/log/sanitizer")
	for name in "${PASS_ON[@]}"; do
		[ -z "${!name:-}" ] || environment+=("$name=${!name}")
	done

	# In the background, for a signal to get through at once; timeout hands it
	# on to the whole process group.
	cd "$WORKSPACE" || die "can't enter $WORKSPACE"
	timeout -k 20 "$limit" "${as_user[@]}" env -i "${environment[@]}" \
		bash "$WORKSPACE/src/$script" </dev/null &
	RUNNER=$!
	wait "$RUNNER"
}

# The rest of the calling script runs in a workspace: outside of one, make it,
# call the script again in it, clean up and exit with its status.
enter_workspace() {
	local limit=$1 script status
	shift
	[ -z "${WORKSPACE:-}" ] || return 0

	script=$(cd "$(dirname "$0")" && pwd -P)/${0##*/}
	prepare "$@"
	make_workspace
	run_in_workspace "$limit" "${script#"$TOP/"}" || {
		status=$?
		[ "$status" != 124 ] || say "Stopped at the time limit of $limit s" >&2
		exit "$status"
	}
	exit 0
}

# Send a signal to all that runs a program of the server's copy. All of it was
# started here, by whatever way. Fails if there was nothing.
signal_workspace() {
	local process found=1
	for process in /proc/[0-9]*; do
		case $(readlink "$process/exe" 2>/dev/null) in
			"$WORKSPACE"/*) kill "-$1" "${process#/proc/}" 2>/dev/null && found=0 ;;
		esac
	done
	return "$found"
}

nothing_runs() {
	! signal_workspace 0
}

leave_workspace() {
	local status=$?
	trap '' INT TERM HUP
	if [ -n "${RUNNER:-}" ] && kill -TERM "$RUNNER" 2>/dev/null; then
		wait "$RUNNER" || true
	fi
	# To servers, QUIT is an immediate shutdown.
	if signal_workspace QUIT && ! wait_until 10 nothing_runs; then
		signal_workspace KILL || true
	fi
	cd /
	if [ -n "${KEEP:-}" ]; then
		say "Kept: $WORKSPACE" >&2
	elif [ "$status" = 0 ] || [ "$status" = 130 ] || [ -z "$(ls -A "$WORKSPACE/log")" ]; then
		rm -rf "$WORKSPACE"
	else
		find "$WORKSPACE" -mindepth 1 -maxdepth 1 ! -name log -exec rm -rf {} +
		say "Logs: $WORKSPACE/log" >&2
	fi
	exit "$status"
}

#
# Inside of the workspace, as an ordinary user
#

# Build and install into the server's copy, with variables for make.
build() {
	# just-in-time compilation of our few functions isn't worth clang
	make -C "$WORKSPACE/src" -s -j"$(nproc)" install \
		PG_CONFIG="$PG_CONFIG" with_llvm=no "$@" >"$WORKSPACE/log/build.log" 2>&1 || {
		cat "$WORKSPACE/log/build.log"
		return 1
	}
}

# Make a cluster in the workspace, reachable by its socket only, that preloads
# tasksched; the settings of the files named are added. Clients find it by PGHOST.
make_cluster() {
	export PGDATA=$WORKSPACE/data PGHOST=$WORKSPACE/tmp PGUSER=postgres PGDATABASE=postgres
	initdb -U postgres -A trust -E UTF8 --no-sync >"$WORKSPACE/log/initdb.log" || {
		cat "$WORKSPACE/log/initdb.log"
		return 1
	}
	cat "$@" - >>"$PGDATA/postgresql.conf" <<-END
		listen_addresses = ''
		unix_socket_directories = '$PGHOST'
		log_line_prefix = '%m [%p] %b: '
		shared_preload_libraries = 'tasksched'
	END
}

# Start it and wait for it to take connections. It is a child of this shell, so
# that no zombie keeps its process id in use after a kill.
start_cluster() {
	postgres >>"$WORKSPACE/log/server.log" 2>&1 &
	POSTMASTER=$!
	wait_until 60 server_is_up_or_gone || true
	if ! pg_isready -q; then
		tail -n 30 "$WORKSPACE/log/server.log"
		return 1
	fi
}

server_is_up_or_gone() {
	pg_isready -q || ! kill -0 "$POSTMASTER" 2>/dev/null
}

stop_cluster() {
	kill -INT "$POSTMASTER"
	wait "$POSTMASTER"
}
