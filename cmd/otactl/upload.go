package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/otad/otad/pkg/health"
	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// uploadFlags are the options of firmware upload.
type uploadFlags struct {
	keyFlags
	name, version, installer, health string
	hardware, run                    []string
	minVersion                       string
	requires                         []string
	securityVersion                  int64
	draft, dryRun                    bool
}

func newFirmwareUploadCmd(a *app) *cobra.Command {
	var f uploadFlags
	cmd := &cobra.Command{
		Use: "upload FILE", Short: "Upload an image and sign it as a release", Args: takes("FILE"),
		Long: `upload cuts, compresses and sends an image, makes a release of it and signs it
with the targets key, in one step. An image that the server has is not sent
again; it is compared instead. Running it again goes on where it stopped.

Without a targets key, or with --draft, the release stays a DRAFT that
"otactl firmware sign" signs later, maybe on another machine. A version that
exists with other content is a conflict: a version never changes.`,
		Example: `  otactl firmware upload build/gateway.img --name gateway --version 1.4.0 --hardware rpi4,rpi5
  otactl firmware upload build/gateway.img --name gateway --version 3.0.0 --hardware rpi4 --min-version 2.0.0
  otactl firmware upload agent --name agent --version 2.0.0 --hardware x86 --installer binary --run '{image}' --run --verbose --health health.json`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.upload(cmd.Context(), args[0], f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "name of the firmware (required)")
	fl.StringVar(&f.version, "version", "", "version of the release (required)")
	fl.StringSliceVar(&f.hardware, "hardware", nil, "hardware models it is for (required; repeat or separate by commas)")
	fl.StringVar(&f.installer, "installer", ota.InstallImage, "how a device installs it: "+ota.InstallImage+" or "+ota.InstallBinary)
	fl.StringArrayVar(&f.run, "run", nil, "word of the command line that a device runs a binary with; {image} is the binary itself (repeat; default: {image} alone)")
	fl.StringVar(&f.health, "health", "", "JSON file with the health contract that a device has to meet after installing")
	fl.Int64Var(&f.securityVersion, "security-version", 0, "devices never go back below the highest one they ran")
	fl.StringVar(&f.minVersion, "min-version", "", "lowest version of the same firmware that a device must run to take the release; those below pass through one that they can take first")
	fl.StringSliceVar(&f.requires, "requires", nil, "other firmware that a device must run to take the release, or a newer version of it, as NAME@VERSION")
	fl.BoolVar(&f.draft, "draft", false, "do not sign")
	fl.BoolVar(&f.dryRun, "dry-run", false, "check everything and change nothing")
	f.register(a, cmd)
	return cmd
}

// manifest checks what the flags say before a byte of the image is read; the
// image's own fields stay open.
func (f uploadFlags) manifest() (ota.Manifest, error) {
	for _, required := range []struct {
		flag string
		set  bool
	}{{"name", f.name != ""}, {"version", f.version != ""}, {"hardware", len(f.hardware) > 0}} {
		if !required.set {
			return ota.Manifest{}, hint(usage("--%s is required", required.flag), "such as --name gateway --version 1.4.0 --hardware rpi4")
		}
	}
	m := ota.Manifest{
		Name: f.name, Version: f.version, HardwareIDs: f.hardware, SecurityVersion: f.securityVersion, MinVersion: f.minVersion, Installer: f.installer, Run: f.run,
	}
	for _, need := range f.requires {
		id, err := ota.ParseReleaseID(need)
		if err != nil {
			return m, usage("--requires: %w", err)
		}
		m.Requires = append(m.Requires, id)
	}
	if f.health != "" {
		raw, err := readSmall(f.health, ota.MaxHealthBytes)
		if err != nil {
			return m, err
		}
		if _, err := health.Parse(raw); err != nil {
			return m, usage("%s: %w", f.health, err)
		}
		if m.Health, err = canonicalJSON(raw); err != nil {
			return m, usage("%s: %w", f.health, err)
		}
	}
	probe := m
	probe.ImageDigest, probe.ImageSize, probe.ObjectSize = strings.Repeat("0", 2*sha256.Size), 1, 1
	return m, probe.Validate()
}

func (a *app) upload(ctx context.Context, path string, f uploadFlags) error {
	m, err := f.manifest()
	if err != nil {
		return err
	}
	raw, err := openImage(path)
	if err != nil {
		return err
	}
	defer raw.Close()
	c, err := a.connect()
	if err != nil {
		return err
	}
	s, err := a.uploadSigner(ctx, c, &f)
	if err != nil {
		return err
	}
	digest, err := a.hashImage(ctx, raw)
	if err != nil {
		return err
	}
	m.ImageDigest, m.ImageSize = hex.EncodeToString(digest[:]), raw.size
	if err := c.checkVersion(ctx, m); err != nil {
		return err
	}
	if f.dryRun {
		a.note("%s could be uploaded: %s, sha256 %s; nothing was changed", m.ID(), exactSize(raw.size), m.ImageDigest)
		return nil
	}
	rel, err := a.storeRelease(ctx, c, raw, m)
	if err != nil {
		return err
	}
	if s != nil {
		if err := s.sign(ctx, rel); err != nil {
			return hint(err, "the release is a DRAFT now; otactl firmware sign %s signs it", m.ID())
		}
	}
	return a.showStored(ctx, c, m.ID())
}

// uploadSigner opens the key before anything is sent; nil leaves a draft.
func (a *app) uploadSigner(ctx context.Context, c *client, f *uploadFlags) (*signer, error) {
	if f.draft {
		return nil, nil
	}
	keys, err := a.openKeyDir(f.dir)
	if err != nil {
		return nil, err
	}
	if present, err := exists(keys.file(targetsKeyFile)); f.key == "" && !present {
		a.note("no targets key in %s: the release will be a draft; otactl key init makes keys, --key names one", keys.path)
		return nil, err
	}
	s, err := a.newSigner(ctx, c, f.keyFlags)
	s.yes = true // upload is the order to sign
	return &s, err
}

// hashImage reads the image once for its digest.
func (a *app) hashImage(ctx context.Context, raw *rawImage) ([sha256.Size]byte, error) {
	var digest [sha256.Size]byte
	bar := a.progress("hash", raw.size)
	h := sha256.New()
	_, err := io.Copy(h, &countingReader{ctx: ctx, r: raw, seen: bar.set})
	bar.done(err == nil)
	h.Sum(digest[:0])
	return digest, err
}

// countingReader reports progress and ends when the context does.
type countingReader struct {
	ctx  context.Context
	r    io.Reader
	n    int64
	seen func(int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.seen(c.n)
	return n, err
}

// checkVersion finds a version that exists with other content before anything
// is sent. The object's size is not known yet and not compared.
func (c *client) checkVersion(ctx context.Context, m ota.Manifest) error {
	resp, err := call(ctx, c.firmware.GetRelease, &otadv1.GetReleaseRequest{Name: m.Name, Version: m.Version})
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if r := resp.GetRelease(); r.GetState() == string(ota.ReleaseWithdrawn) {
		return hint(fail(exitConflict, "%s is withdrawn: %s", m.ID(), r.GetReason()), "upload it under a new version")
	}
	stored, err := parseManifest(resp.GetRelease().GetManifest())
	if err != nil {
		return err
	}
	m.ObjectSize = stored.ObjectSize
	have, errHave := json.Marshal(stored)
	want, errWant := json.Marshal(m)
	if errHave == nil && errWant == nil && sameJSON(have, want) {
		return nil
	}
	return versionTaken(fail(exitConflict, "%s exists with other content (image %s)", m.ID(), stored.ImageDigest), m.ID())
}

func versionTaken(err error, id ota.ReleaseID) error {
	return hint(err, "a version never changes; upload this under a new one (otactl firmware show %s shows what is there)", id)
}

// storeRelease makes sure that the server has the image and the release.
func (a *app) storeRelease(ctx context.Context, c *client, raw *rawImage, m ota.Manifest) (content, error) {
	index, err := a.storeImage(ctx, c, raw, m.ImageDigest)
	if err != nil {
		return content{}, err
	}
	encoded, err := index.MarshalBinary()
	if err != nil {
		return content{}, err
	}
	m.ObjectSize = index.ObjectSize()
	manifest, err := json.Marshal(m)
	if err != nil {
		return content{}, err
	}
	rel, err := newContent(manifest, encoded)
	if err != nil {
		return rel, err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err = call(ctx, c.firmware.CreateRelease, &otadv1.CreateReleaseRequest{Manifest: manifest, Index: encoded})
	if connect.CodeOf(err) == connect.CodeAlreadyExists {
		err = versionTaken(err, m.ID())
	}
	return rel, err
}

// storeImage returns the index of the image's object on the server: the one
// that is there, compared with the local file, or that of a new upload.
func (a *app) storeImage(ctx context.Context, c *client, raw *rawImage, digest string) (*image.Index, error) {
	index, err := a.storedIndex(ctx, c, raw, digest)
	if index != nil || err != nil {
		return index, err
	}
	index, err = a.sendImage(ctx, c, raw, digest)
	if errors.Is(err, errHasImage) {
		if index, err = a.storedIndex(ctx, c, raw, digest); index == nil && err == nil {
			err = fail(exitFailed, "the server took the image for stored and does not have it")
		}
	}
	return index, err
}

func (a *app) storedIndex(ctx context.Context, c *client, raw *rawImage, digest string) (*image.Index, error) {
	resp, err := call(ctx, c.firmware.GetImage, &otadv1.GetImageRequest{Sha256: digest})
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	index, err := image.ParseIndex(resp.GetIndex())
	if err != nil {
		return nil, fail(exitDenied, "the server's index of the image: %w", err)
	}
	if _, err := raw.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	bar := a.progress("compare", raw.size)
	err = matchImage(index, &countingReader{ctx: ctx, r: raw, seen: func(int64) {}}, bar.set)
	bar.done(err == nil)
	if err != nil {
		return nil, fail(exitDenied, "the server's index does not describe this image: %w", err)
	}
	a.note("the server has the image already; it was compared, not sent")
	return index, nil
}

var (
	errHasImage   = errors.New("the server has the image")
	errUploadOver = errors.New("the upload is over")
)

// sendImage encodes the image straight into the request. errHasImage when the
// server accepts before it has read everything.
func (a *app) sendImage(ctx context.Context, c *client, raw *rawImage, digest string) (*image.Index, error) {
	if _, err := raw.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bar := a.progress("upload", raw.size)
	pr, pw := io.Pipe()
	var index *image.Index
	var encode errgroup.Group
	encode.Go(func() (err error) {
		index, err = image.Encode(ctx, pw, raw.File, image.EncodeOptions{SizeHint: raw.size, Progress: bar.set})
		_ = pw.CloseWithError(err)
		return err
	})
	sendErr := c.putImage(ctx, digest, pr)
	_ = pr.CloseWithError(errUploadOver)
	encodeErr := encode.Wait()
	bar.done(sendErr == nil && encodeErr == nil)
	switch {
	case encodeErr != nil && !errors.Is(encodeErr, errUploadOver) && !errors.Is(encodeErr, io.ErrClosedPipe):
		return nil, fmt.Errorf("encode %s: %w", raw.Name(), encodeErr)
	case sendErr != nil:
		return nil, sendErr
	case encodeErr != nil:
		return nil, errHasImage
	case hex.EncodeToString(index.RawDigest[:]) != digest:
		return nil, hint(fail(exitFailed, "%s changed while it was uploaded", raw.Name()), "wait until the build is done and run this again")
	}
	a.note("uploaded %s as %s, %s of it", byteSize(index.RawSize), byteSize(index.ObjectSize()), percent(index.ObjectSize(), index.RawSize))
	return index, nil
}

// putImage sends an object. The server names it by the digest of the raw image.
func (c *client) putImage(ctx context.Context, digest string, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.server+"/v1/images/"+digest, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.http.Do(req)
	if err != nil {
		return c.lost(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 == 2 {
		return nil
	}
	return httpError(resp.StatusCode, answer, err)
}

// statusCodes gives the statuses of the image upload the meaning of the API's
// codes, so that one table judges both.
var statusCodes = map[int]connect.Code{
	http.StatusBadRequest:            connect.CodeInvalidArgument,
	http.StatusUnauthorized:          connect.CodeUnauthenticated,
	http.StatusForbidden:             connect.CodePermissionDenied,
	http.StatusNotFound:              connect.CodeNotFound,
	http.StatusConflict:              connect.CodeAlreadyExists,
	http.StatusRequestTimeout:        connect.CodeDeadlineExceeded,
	http.StatusRequestEntityTooLarge: connect.CodeResourceExhausted,
	http.StatusTooManyRequests:       connect.CodeResourceExhausted,
	http.StatusInsufficientStorage:   connect.CodeResourceExhausted,
	http.StatusInternalServerError:   connect.CodeInternal,
	http.StatusBadGateway:            connect.CodeUnavailable,
	http.StatusServiceUnavailable:    connect.CodeUnavailable,
	http.StatusGatewayTimeout:        connect.CodeDeadlineExceeded,
}

// httpError reads the message of an answer, be it {"message"}, {"error":{"message"}}
// or text.
func httpError(status int, body []byte, readErr error) error {
	code, ok := statusCodes[status]
	if !ok {
		code = connect.CodeUnknown
	}
	var doc struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Error   struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &doc)           // text is no error: it is shown as it is
	_ = code.UnmarshalText([]byte(doc.Code)) // the server's own word is finer; without one the status stands
	text := first(doc.Message, doc.Error.Message, strings.TrimSpace(string(body)), http.StatusText(status))
	return connect.NewError(code, errors.Join(errors.New(text), readErr))
}
