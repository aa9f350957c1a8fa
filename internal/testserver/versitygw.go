package testserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// versityModule is the S3 server for tests. It is no dependency of the module:
// its binary is built once into .cache/tools.
const versityModule = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// S3 is a running S3 server with no bucket in it.
type S3 struct {
	Endpoint  string // host:port, plain http
	AccessKey string
	SecretKey string
	Region    string
}

// VersityGW starts versitygw over a temporary directory until the test ends.
func VersityGW(t testing.TB) *S3 {
	t.Helper()
	bin, err := versityBinary(t)
	if err != nil {
		t.Fatalf("versitygw: %v", err)
	}
	s := &S3{AccessKey: "test" + rand.Text()[:12], SecretKey: rand.Text(), Region: "us-east-1"}
	dir := xattrDir(t)
	retry(t, func() error { return s.start(t, bin, dir) })
	return s
}

func (s *S3) start(t testing.TB, bin, dir string) error {
	addr, err := FreeAddr()
	if err != nil {
		return err
	}
	cmd := exec.Command(bin, "--port", addr, "--region", s.Region, "--health", "/health", "--quiet", "posix", dir)
	cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.SecretKey, "HOME=" + dir}
	p, err := start(cmd, func(ctx context.Context) error { return healthy(ctx, "http://"+addr+"/health") })
	if err != nil {
		return err
	}
	t.Cleanup(p.kill)
	s.Endpoint = addr
	return nil
}

func healthy(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("health: %s", res.Status)
	}
	return nil
}

// One build at a time within a test process; go itself serialises processes.
var versityInstall sync.Mutex

// versityBinary finds versitygw in .cache/tools or on PATH, or installs it.
func versityBinary(t testing.TB) (string, error) {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	tools := filepath.Join(root, ".cache", "tools")
	bin := filepath.Join(tools, "versitygw")
	versityInstall.Lock()
	defer versityInstall.Unlock()
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if onPath, err := exec.LookPath("versitygw"); err == nil {
		return onPath, nil
	}
	t.Logf("building %s into %s, once", versityModule, tools)
	cmd := exec.Command("go", "install", versityModule)
	cmd.Env = append(os.Environ(), "GOBIN="+tools, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go install %s: %w\n%s", versityModule, err, out)
	}
	return bin, nil
}

// xattrDir is a temporary directory on a file system with user extended
// attributes, where versitygw keeps metadata. tmpfs of older kernels has none.
func xattrDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Setxattr(dir, "user.otad", []byte("probe"), 0); err == nil {
		return dir
	} else if !errors.Is(err, unix.ENOTSUP) {
		t.Fatalf("set extended attribute: %v", err)
	}
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = os.MkdirTemp(filepath.Join(root, ".cache"), "s3-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
