package fleet_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
)

// made is an image as an operator has it before the upload.
type made struct {
	object, index []byte
	manifest      ota.Manifest
}

func (w *world) make(version string, raw []byte) made {
	w.t.Helper()
	var object bytes.Buffer
	ix, err := image.Encode(w.ctx, &object, bytes.NewReader(raw), image.EncodeOptions{Params: image.DefaultParams(int64(len(raw))), Level: 1})
	w.ok(err)
	index, err := ix.MarshalBinary()
	w.ok(err)
	return made{object.Bytes(), index, ota.Manifest{
		Name: "gw", Version: version, HardwareIDs: []string{"rpi4"}, Installer: ota.InstallImage,
		ImageDigest: hex.EncodeToString(ix.RawDigest[:]), ImageSize: ix.RawSize, ObjectSize: ix.ObjectSize(),
	}}
}

func (w *world) upload(m made) error {
	_, err := w.s.UploadImage(w.ctx, m.manifest.ImageDigest, bytes.NewReader(m.object))
	return err
}

// TestAnUploadUnderWayMakesNoRelease: what is verified must be what stays.
func TestAnUploadUnderWayMakesNoRelease(t *testing.T) {
	w := newWorld(t)
	m := w.make("1.0", []byte("firmware"))
	w.ok(w.upload(m))
	slow, feed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := w.s.UploadImage(w.ctx, m.manifest.ImageDigest, slow)
		done <- err
	}()
	_, err := feed.Write([]byte("gar")) // returns when the upload reads
	w.ok(err)
	if err := w.upload(m); !errors.Is(err, fleet.ErrBusy) {
		t.Errorf("a second upload meanwhile: %v", err)
	}
	if _, err := w.s.CreateRelease(w.ctx, m.manifest, m.index); !errors.Is(err, fleet.ErrBusy) {
		t.Errorf("a release meanwhile: %v", err)
	}
	w.ok(feed.CloseWithError(io.ErrUnexpectedEOF))
	if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if _, err := w.s.CreateRelease(w.ctx, m.manifest, m.index); err != nil {
		t.Fatalf("after it: %v", err)
	}
}

// gatedBlobs lets images be opened when told to.
type gatedBlobs struct {
	blob.Store
	opened chan string
	gate   chan struct{}
}

func (b *gatedBlobs) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.HasPrefix(key, "images/") {
		b.opened <- key
		<-b.gate
	}
	return b.Store.Open(ctx, key, offset, length)
}

func TestVerificationIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := &gatedBlobs{Store: w.s.Blobs, opened: make(chan string, 10), gate: make(chan struct{})}
		w.s.Blobs = b
		create := func(ctx context.Context, m made) <-chan error {
			done := make(chan error, 1)
			go func() {
				_, err := w.s.CreateRelease(ctx, m.manifest, m.index)
				done <- err
			}()
			synctest.Wait()
			return done
		}
		var first []<-chan error
		for i := range fleet.MaxVerifying {
			m := w.make("1."+string(rune('0'+i)), []byte{byte(i)})
			w.ok(w.upload(m))
			first = append(first, create(w.ctx, m))
			if err := w.upload(m); !errors.Is(err, fleet.ErrBusy) {
				t.Errorf("an upload during the verification: %v", err)
			}
		}
		late := w.make("2.0", []byte("late"))
		w.ok(w.upload(late))
		ctx, cancel := context.WithCancel(w.ctx)
		waiting := create(ctx, late)
		if n := len(b.opened); n != fleet.MaxVerifying {
			t.Errorf("%d objects are read at once", n)
		}
		cancel()
		if err := <-waiting; !errors.Is(err, context.Canceled) {
			t.Errorf("who waits can not leave: %v", err)
		}
		close(b.gate)
		for _, done := range first {
			w.ok(<-done)
		}
		w.ok(<-create(w.ctx, late))
	})
}

func TestCheckSeesACutObject(t *testing.T) {
	w := newWorld(t)
	r := w.release("1.0")
	if faults, err := w.s.Check(w.ctx); err != nil || len(faults) > 0 {
		t.Fatalf("%v, %v", faults, err)
	}
	_, err := w.s.Blobs.Put(w.ctx, "images/"+r.ImageDigest, strings.NewReader("x"), 10)
	w.ok(err)
	w.ok(w.s.Blobs.Delete(w.ctx, "indexes/"+r.IndexDigest))
	faults, err := w.s.Check(w.ctx)
	w.ok(err)
	if text := strings.Join(faults, "\n"); len(faults) != 2 || !strings.Contains(text, "has 1 bytes") || !strings.Contains(text, "is missing") {
		t.Fatalf("%q", faults)
	}
}

func TestManifestTextIsExact(t *testing.T) {
	w := newWorld(t)
	good := `{"name":"gw","version":"1","hardwareIds":["rpi4"],"installer":"image","imageDigest":"` + strings.Repeat("ab", 32) + `","imageSize":1,"objectSize":1}`
	_, err := fleet.ParseManifest([]byte(good + " \n"))
	w.ok(err)
	for _, after := range []string{"}", "]", "{}", "x", ","} {
		if _, err := fleet.ParseManifest([]byte(good + after)); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%q after it: %v", after, err)
		}
	}
	if _, err := fleet.ParseManifest([]byte(strings.Replace(good, "{", `{"unheard":1,`, 1))); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("an unknown member: %v", err)
	}
}

func TestOnlineKeysMustBeTheRoots(t *testing.T) {
	w := newWorld(t)
	w.ok(w.s.CheckOnlineKeys(w.ctx))
	w.s.OnlineKeys.Snapshot.Signer = w.key()
	if err := w.s.CheckOnlineKeys(w.ctx); !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("lost online keys: %v", err)
	}
}
