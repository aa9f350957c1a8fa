package testserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// Postgres is a PostgreSQL server of its own, Debian's program, for the tests of
// one package: it is started by the first that asks for a database. TestMain
// ends it by Stop. The zero value is ready.
type Postgres struct {
	// Durable makes commits wait for the disk, as benchmarks want it. Otherwise
	// what a power cut would lose is traded for speed.
	Durable bool
	// Socket has whoever takes a URL come by a socket in the server's directory, as on
	// one machine is done.
	Socket bool

	once     sync.Once
	err      error
	dir      string
	addr     string
	password string
	proc     *process
	made     atomic.Int64
}

// postgresUser is whom the server runs as when the tests are root's, which it
// refuses.
const postgresUser = "postgres"

// Database makes an empty database and returns its URL, password included.
func (p *Postgres) Database(t testing.TB) string {
	t.Helper()
	url, err := p.NewDatabase()
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// NewDatabase is Database for who is no test.
func (p *Postgres) NewDatabase() (string, error) {
	if err := p.start(); err != nil {
		return "", err
	}
	name := fmt.Sprintf("test%d", p.made.Add(1))
	return p.url(name), p.Do("CREATE DATABASE " + name + " TEMPLATE template0 ENCODING 'UTF8'")
}

// Schema makes an empty schema and returns the URL that looks there and nowhere
// else. It is a database for a test, made a hundred times faster.
func (p *Postgres) Schema(t testing.TB) string {
	t.Helper()
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test%d", p.made.Add(1))
	if err := p.Do("CREATE SCHEMA " + name); err != nil {
		t.Fatal(err)
	}
	return p.url(postgresUser) + "&search_path=" + name
}

// Do runs a statement as the superuser.
func (p *Postgres) Do(statement string) error {
	config, err := pgx.ParseConfig(p.url(postgresUser))
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*config)
	_, err = db.Exec(statement)
	return errors.Join(err, db.Close())
}

// Addr is where the server listens.
func (p *Postgres) Addr() string { return p.addr }

// CPU is the processor time that the server and its children have used, of those
// that have ended too.
func (p *Postgres) CPU() time.Duration {
	parent := p.proc.cmd.Process.Pid
	_, used := cpuOf(parent)
	all, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a constant
	for _, dir := range all {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if of, n := cpuOf(pid); of == parent {
			used += n
		}
	}
	return used
}

// cpuOf is the parent of a process and what it and its children that have ended
// used, 0 when it has gone.
func cpuOf(pid int) (parent int, used time.Duration) {
	const clockTick = 10 * time.Millisecond
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	_, rest, _ := strings.Cut(string(raw), ") ") // the program's name may hold spaces
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0, 0
	}
	for _, field := range fields[11:15] {
		ticks, _ := strconv.ParseInt(field, 10, 64) // the kernel writes numbers
		used += time.Duration(ticks) * clockTick
	}
	parent, _ = strconv.Atoi(fields[1])
	return parent, used
}

// Kill ends the server as a crash does: it comes back by Restart with what was
// committed, if it is Durable.
func (p *Postgres) Kill() { p.end(syscall.SIGQUIT) }

// Restart starts it again in its place.
func (p *Postgres) Restart(t testing.TB) {
	t.Helper()
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
}

// Stop ends the server and removes what it kept.
func (p *Postgres) Stop() {
	if p.proc != nil {
		p.end(syscall.SIGQUIT)
	}
	if p.dir != "" {
		_ = os.RemoveAll(p.dir)
	}
}

// end lets the server take its children and its shared memory along.
func (p *Postgres) end(signal os.Signal) {
	_ = p.proc.cmd.Process.Signal(signal)
	<-p.proc.exited
}

func (p *Postgres) url(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(postgresUser, p.password), Host: p.addr, Path: "/" + database,
		RawQuery: "sslmode=disable",
	}
	if p.Socket {
		u.Host = ""
		u.RawQuery = url.Values{"sslmode": {"disable"}, "host": {p.dir}, "port": {p.port()}}.Encode()
	}
	return u.String()
}

func (p *Postgres) port() string {
	_, port, _ := strings.Cut(p.addr, ":")
	return port
}

func (p *Postgres) start() error {
	p.once.Do(func() {
		if p.err = p.initialize(); p.err != nil {
			return
		}
		for range startTries {
			if p.addr, p.err = FreeAddr(); p.err != nil {
				return
			}
			if p.err = p.run(); p.err == nil {
				return
			}
		}
	})
	return p.err
}

// initialize makes the cluster in a directory that its user can reach.
func (p *Postgres) initialize() (err error) {
	if p.dir, err = os.MkdirTemp("", "otad-postgres-"); err != nil {
		return err
	}
	p.password = rand.Text()
	secret := filepath.Join(p.dir, "password")
	if err := os.WriteFile(secret, []byte(p.password), 0o600); err != nil {
		return err
	}
	if id := p.identity(); id != nil {
		if err := errors.Join(os.Chown(p.dir, int(id.Uid), int(id.Gid)), os.Chown(secret, int(id.Uid), int(id.Gid))); err != nil {
			return err
		}
	}
	cmd, err := p.command("initdb", "--pgdata", p.data(), "--username", postgresUser, "--pwfile", secret,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync")
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

func (p *Postgres) data() string { return filepath.Join(p.dir, "data") }

func (p *Postgres) run() error {
	host, _, _ := strings.Cut(p.addr, ":")
	settings := map[string]string{
		"listen_addresses": host, "port": p.port(), "unix_socket_directories": "", "dynamic_shared_memory_type": "mmap",
		"max_connections": "200", "shared_buffers": "64MB", "deadlock_timeout": "50ms", "log_min_messages": "fatal",
	}
	if p.Durable { // as a server is set up that this machine is there for
		settings["shared_buffers"], settings["max_wal_size"], settings["wal_compression"] = "1GB", "4GB", "on"
	} else {
		settings["fsync"], settings["full_page_writes"], settings["synchronous_commit"] = "off", "off", "local"
	}
	if p.Socket {
		settings["unix_socket_directories"] = p.dir
	}
	args := []string{"-D", p.data()}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	cmd, err := p.command("postgres", args...)
	if err != nil {
		return err
	}
	p.proc, err = start(cmd, p.ready)
	return err
}

func (p *Postgres) ready(ctx context.Context) error {
	config, err := pgx.ParseConfig(p.url(postgresUser))
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*config)
	return errors.Join(db.PingContext(ctx), db.Close())
}

// command is a program of the server, as a user that is not root and in a
// directory that this user may enter.
func (p *Postgres) command(name string, args ...string) (*exec.Cmd, error) {
	bin, err := postgresBinary(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(bin, args...)
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=UTC"}
	cmd.SysProcAttr = dieWithParent()
	if id := p.identity(); id != nil {
		become(cmd, id)
	}
	return cmd, nil
}

// credential is a user of the system.
type credential struct{ Uid, Gid uint32 }

// identity is the user to become, nil when the tests are not root's.
func (p *Postgres) identity() *credential {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(postgresUser)
	if err != nil {
		return nil // the server will say that it does not run as root
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32) // numbers, on every system that has this user
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	return &credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// postgresBinary also looks where Debian puts it, which is on no user's PATH,
// the newest version first.
func postgresBinary(name string) (string, error) {
	if bin, err := exec.LookPath(name); err == nil {
		return bin, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // the pattern is a constant
	slices.Sort(found)
	if len(found) > 0 {
		return found[len(found)-1], nil
	}
	return "", errors.New("this test needs a real PostgreSQL; install it: scripts/test-tools.sh, or apt-get install postgresql")
}
