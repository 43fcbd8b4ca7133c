package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bulkhead/lab/fabric"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

// postgresUser is who the real database runs as; it refuses to run as root.
const postgresUser = "postgres"

// postgresBin returns the directory of the newest PostgreSQL server here, or "".
func postgresBin() string {
	var found []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/postgres", "/usr/pgsql-*/bin/postgres", "/usr/local/pgsql/bin/postgres"} {
		some, err := filepath.Glob(pattern)
		if err == nil {
			found = append(found, some...)
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			found = append(found, real)
		}
	}
	found = slices.DeleteFunc(found, func(p string) bool { return !isProgram(p) || !isProgram(filepath.Join(filepath.Dir(p), "initdb")) })
	if len(found) == 0 {
		return ""
	}
	slices.SortFunc(found, func(a, b string) int { return postgresVersion(a) - postgresVersion(b) })
	return filepath.Dir(found[len(found)-1])
}

// postgresVersion reads the major version out of the path; zero where it has none.
func postgresVersion(path string) int {
	for part := range strings.SplitSeq(path, "/") {
		if n, err := strconv.Atoi(strings.TrimPrefix(part, "pgsql-")); err == nil {
			return n
		}
	}
	return 0
}

// wantsPostgres reports whether the scenario has a database that can be the real one here.
func (r *Rig) wantsPostgres() bool {
	wanted := false
	for _, p := range r.cfg.Scenario.Placed() {
		wanted = wanted || p.Real == scenario.RealPostgres
	}
	if !wanted || postgresBin() == "" {
		return false
	}
	if _, err := exec.LookPath("psql"); err != nil {
		return false
	}
	_, err := user.Lookup(postgresUser)
	return err == nil
}

// Real reports whether the database of the lab is the real PostgreSQL.
func (r *Rig) Real() bool { return r.real }

func (r *Rig) isPostgres(p *scenario.Placed) bool {
	return r.real && p.Real == scenario.RealPostgres
}

// startPostgres makes a fresh cluster and starts the server in its unit.
func (r *Rig) startPostgres(ctx context.Context, p *scenario.Placed) error {
	r.cfg.Say("making a fresh PostgreSQL for %s", p.ID)
	account, err := user.Lookup(postgresUser)
	if err != nil {
		return err
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return err
	}
	home := filepath.Join(r.Layout.HostDir(p.ID.Host), "postgres")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	if err := os.Chown(home, int(uid), int(gid)); err != nil {
		return err
	}
	bin, data := postgresBin(), filepath.Join(home, "data")
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", postgresUser, "-A", "trust", "-N",
		"-E", "UTF8", "--locale=C", "--wal-segsize=1")
	initdb.Dir = home
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, bytes.TrimSpace(out))
	}
	if err := r.configurePostgres(p, home, data); err != nil {
		return err
	}
	process, err := r.fabric.Start(fabric.Command{
		Host: p.ID.Host, Unit: p.ID.Unit, Path: filepath.Join(bin, "postgres"), Args: []string{"-D", data}, Dir: home,
		Env: append(os.Environ(), "LC_ALL=C"), Log: r.logPath(fileName(key(p))), UID: uint32(uid), GID: uint32(gid), Stay: r.cfg.Stay,
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.processes[key(p)] = process
	r.mu.Unlock()
	return r.fillPostgres(ctx, home)
}

// configurePostgres listens on the lab's addresses and trusts the lab's network: that is its way in.
func (r *Rig) configurePostgres(p *scenario.Placed, home, data string) error {
	addrs := make([]string, len(p.Host.Addresses))
	for i, a := range p.Host.Addresses {
		addrs[i] = a.String()
	}
	conf := fmt.Sprintf(`
listen_addresses = '%s'
port = %d
unix_socket_directories = '%s'
shared_buffers = 16MB
max_connections = 60
fsync = off
full_page_writes = off
synchronous_commit = off
max_wal_size = 8MB
min_wal_size = 2MB
autovacuum = off
logging_collector = off
`, strings.Join(addrs, ","), p.Listen[0].Port.Port, home)
	f, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(conf); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	hba := "local all all trust\n"
	for _, n := range r.labPrefixes() {
		hba += fmt.Sprintf("host all all %s trust\n", n)
	}
	return os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(hba), 0o600)
}

// fillPostgres makes the lab's table, over the local socket.
func (r *Rig) fillPostgres(ctx context.Context, home string) error {
	psql := func(db, sql string) error {
		cmd := exec.CommandContext(ctx, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", home, "-U", postgresUser, "-d", db, "-c", sql)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("psql: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	}
	err := fabric.WaitUntil(ctx, "the start of PostgreSQL", settleTime, 50*time.Millisecond, func() error { return psql("postgres", "select 1") })
	if err != nil {
		return err
	}
	if err := psql("postgres", "create database "+traffic.PostgresDB); err != nil {
		return err
	}
	return psql(traffic.PostgresDB, fmt.Sprintf(`create role %[1]s login;
create table accounts (id int primary key, balance numeric not null);
insert into accounts select n, n * 10 from generate_series(1, %[2]d) n;
grant select on accounts to %[1]s;`, traffic.PostgresUser, traffic.PostgresAccounts))
}
