// Package deviceapi is the HTTPS half of the device plane: enrollment,
// certificate renewal, signed metadata and firmware images, as
// docs/device-protocol.md writes it. Every door but enrollment, the links in job
// documents and the list of revoked certificates needs the client certificate of
// a device that is known and not revoked. It decides nothing by itself;
// internal/fleet does.
package deviceapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// Limits of the HTTPS device plane.
const (
	MaxRequestBytes = 64 << 10
	// BodyTimeout is how long a device may take to send a request's body.
	BodyTimeout = 30 * time.Second
	// WriteTimeout is how long a device may take none of an answer's next
	// writeBytes. It is long, since a slow line drains large socket buffers.
	WriteTimeout = 2 * time.Minute
	writeBytes   = 32 << 10
	// LinkLife is how long a presigned image URL lives.
	LinkLife = 15 * time.Minute
	// EnrollBurst is how many enrollments one address (of IPv6: one /64) may try
	// in EnrollWindow, unless New is told otherwise.
	EnrollBurst    = 60
	MaxEnrollBurst = 1_000_000
	EnrollWindow   = time.Minute
	// maxTracked bounds the table of addresses that have tried lately.
	maxTracked = 100_000
)

// Server answers devices.
type Server struct {
	fleet   *fleet.Service
	blobs   blob.Store
	log     *slog.Logger
	limiter *limiter
	lists   *limiter // of the revocation lists
}

// Config is what New needs.
type Config struct {
	Fleet       *fleet.Service
	Blobs       blob.Store
	Log         *slog.Logger
	Now         func() time.Time
	EnrollBurst int // 0: EnrollBurst; at most MaxEnrollBurst
}

// New returns the handler of the device plane. It must be served with TLS that
// verifies client certificates where they are given.
func New(c Config) http.Handler {
	burst := c.EnrollBurst
	if burst == 0 {
		burst = EnrollBurst
	}
	s := &Server{
		fleet: c.Fleet, blobs: c.Blobs, log: c.Log,
		limiter: &limiter{now: c.Now, burst: burst}, lists: &limiter{now: c.Now, burst: EnrollBurst},
	}
	return timed(s.routes(), BodyTimeout, WriteTimeout)
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /enroll", s.enroll)
	mux.HandleFunc("POST /renew", s.device(s.renew))
	mux.HandleFunc("GET /metadata/{file}", s.device(s.metadata))
	mux.HandleFunc("GET /targets/{name}/{file}", s.device(s.target))
	mux.HandleFunc("GET /images/{digest}", s.device(s.image))
	mux.HandleFunc("GET /files/{digest}", s.linked)
	mux.HandleFunc("PUT /uploads/{job}/{attempt}", s.device(s.upload))
	mux.HandleFunc("GET /crl.pem", s.revocationLists)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, fmt.Errorf("%w: no such page", fleet.ErrNotFound))
	})
	return mux
}

// revocationLists sends what a broker on another machine checks device
// certificates with. It is public, as such lists are.
func (s *Server) revocationLists(w http.ResponseWriter, r *http.Request) {
	if !s.lists.allow(r.RemoteAddr) {
		w.Header().Set("Retry-After", strconv.Itoa(int(EnrollWindow.Seconds())))
		s.write(w, http.StatusTooManyRequests, "throttled", "too many requests from this address; try again in a minute")
		return
	}
	b, err := s.fleet.RevocationLists(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	s.send(w, b)
}

// device lets through requests of admitted devices only.
func (s *Server) device(next func(http.ResponseWriter, *http.Request, fleet.Device)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			s.write(w, http.StatusUnauthorized, "denied", "a device certificate is needed; enroll first")
			return
		}
		d, err := s.fleet.AdmitCertificate(r.Context(), r.TLS.PeerCertificates[0])
		if err != nil {
			s.fail(w, r, err)
			return
		}
		next(w, r, d)
	}
}

type enrollRequest struct {
	Token    string `json:"token"`
	DeviceID string `json:"deviceId"`
	Hardware string `json:"hardware"`
	CSR      string `json:"csr"`
}

type enrollResponse struct {
	DeviceID    string `json:"deviceId"`
	Hardware    string `json:"hardware"`
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
	Root        string `json:"root"` // base64
	MQTTURL     string `json:"mqttUrl"`
}

func (s *Server) enroll(w http.ResponseWriter, r *http.Request) {
	if !s.limiter.allow(r.RemoteAddr) {
		w.Header().Set("Retry-After", strconv.Itoa(int(EnrollWindow.Seconds())))
		s.write(w, http.StatusTooManyRequests, "throttled", "too many enrollments from this address; try again in a minute")
		return
	}
	var req enrollRequest
	if err := readJSON(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	e := fleet.Enrollment{DeviceID: req.DeviceID, Hardware: req.Hardware, CSR: []byte(req.CSR)}
	secret, err := base64.RawURLEncoding.DecodeString(req.Token)
	if err != nil || len(secret) != len(e.Secret) {
		s.fail(w, r, fmt.Errorf("%w: the token's secret is not 32 bytes in base64url", fleet.ErrInvalid))
		return
	}
	e.Secret = [32]byte(secret)
	done, err := s.fleet.Enroll(r.Context(), e)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.json(w, http.StatusOK, enrollResponse{
		DeviceID: done.Device.ID, Hardware: done.Device.Hardware, Certificate: string(done.Certificate), CA: string(done.CA),
		Root: base64.StdEncoding.EncodeToString(done.Root), MQTTURL: done.MQTTURL,
	})
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request, d fleet.Device) {
	var req struct {
		CSR string `json:"csr"`
	}
	if err := readJSON(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	chain, err := s.fleet.Renew(r.Context(), d.ID, []byte(req.CSR))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.json(w, http.StatusOK, map[string]string{"certificate": string(chain)})
}

func (s *Server) metadata(w http.ResponseWriter, r *http.Request, _ fleet.Device) {
	role, version, err := parseMetadataName(r.PathValue("file"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	b, err := s.fleet.MetadataFile(r.Context(), role, version)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	s.send(w, b)
}

// parseMetadataName reads "timestamp.json" or "VERSION.ROLE.json".
func parseMetadataName(file string) (fleet.Role, int64, error) {
	if file == "timestamp.json" {
		return fleet.RoleTimestamp, 0, nil
	}
	number, role, ok := strings.Cut(strings.TrimSuffix(file, ".json"), ".")
	version, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || version < 1 || strconv.FormatInt(version, 10) != number || !strings.HasSuffix(file, ".json") ||
		fleet.Role(role) == fleet.RoleTimestamp {
		return "", 0, fmt.Errorf("%w: metadata file %.80q", fleet.ErrNotFound, file)
	}
	return fleet.Role(role), version, nil
}

func (s *Server) target(w http.ResponseWriter, r *http.Request, _ fleet.Device) {
	digest, file, _ := strings.Cut(r.PathValue("file"), ".")
	version, ok := strings.CutSuffix(file, ".idx")
	id := ota.ReleaseID{Name: r.PathValue("name"), Version: version}
	if !ok || ota.ValidateDigest(digest) != nil || id.Validate() != nil {
		s.fail(w, r, fmt.Errorf("%w: target %.200q", fleet.ErrNotFound, r.URL.Path))
		return
	}
	index, err := s.fleet.Index(r.Context(), digest)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	s.send(w, index)
}

// image sends the object, or the device to where it lies.
func (s *Server) image(w http.ResponseWriter, r *http.Request, d fleet.Device) {
	digest := r.PathValue("digest")
	if err := ota.ValidateDigest(digest); err != nil {
		s.fail(w, r, err)
		return
	}
	key := "images/" + digest
	if linker, ok := s.blobs.(blob.Linker); ok {
		url, err := linker.Link(r.Context(), key, LinkLife)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		w.Header().Set("Location", url) // no body: a presigned URL stands in no log or cache of ours
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	info, err := s.blobs.Stat(r.Context(), key)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	content := &blobSeeker{ctx: r.Context(), store: s.blobs, key: key, size: info.Size}
	defer func() {
		content.Close()
		if content.err != nil && r.Context().Err() == nil {
			s.log.Error("image was cut off", "digest", digest, "device", d.ID, "error", content.err)
		}
	}()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"`+digest+"-"+strconv.FormatInt(info.Size, 10)+`"`)
	http.ServeContent(w, r, "", info.Modified, content)
}

// blobSeeker shows a stored object as what http.ServeContent reads ranges from.
type blobSeeker struct {
	ctx    context.Context
	store  blob.Store
	key    string
	size   int64
	offset int64
	body   io.ReadCloser
	err    error // the first fault of the store, which ServeContent keeps to itself
}

func (b *blobSeeker) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.offset
	case io.SeekEnd:
		offset += b.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	if offset != b.offset {
		b.Close()
		b.offset = offset
	}
	return offset, nil
}

func (b *blobSeeker) Read(p []byte) (int, error) {
	if b.offset >= b.size {
		return 0, io.EOF
	}
	if b.body == nil {
		body, err := b.store.Open(b.ctx, b.key, b.offset, -1)
		if err != nil {
			return 0, b.fault(err)
		}
		b.body = body
	}
	n, err := b.body.Read(p)
	b.offset += int64(n)
	if errors.Is(err, io.EOF) && b.offset < b.size {
		err = fmt.Errorf("object of %d bytes ends after %d", b.size, b.offset)
	}
	return n, b.fault(err)
}

func (b *blobSeeker) fault(err error) error {
	if b.err == nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return err
}

func (b *blobSeeker) Close() {
	if b.body != nil {
		_ = b.body.Close() // reading it gave what there was to know
		b.body = nil
	}
}

func readJSON(w http.ResponseWriter, r *http.Request, to any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxRequestBytes))
	if err := d.Decode(to); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return fmt.Errorf("%w: at most %d bytes", errTooLarge, MaxRequestBytes)
		}
		return fmt.Errorf("%w: body: %v", fleet.ErrInvalid, err)
	}
	return nil
}

var errTooLarge = errors.New("request too large")

// fail answers with the code that the error's class has.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	for _, row := range []struct {
		class  error
		status int
		code   string
	}{
		{fleet.ErrInvalid, http.StatusBadRequest, "invalid"},
		{fleet.ErrDenied, http.StatusForbidden, "denied"},
		{fleet.ErrNotFound, http.StatusNotFound, "not_found"},
		{blob.ErrNotFound, http.StatusNotFound, "not_found"},
		{fleet.ErrConflict, http.StatusConflict, "conflict"},
		{errTooLarge, http.StatusRequestEntityTooLarge, "too_large"},
		{blob.ErrTooLarge, http.StatusRequestEntityTooLarge, "too_large"},
	} {
		if errors.Is(err, row.class) {
			s.write(w, row.status, row.code, err.Error())
			return
		}
	}
	if r.Context().Err() == nil { // else the device has gone, which is not our fault
		s.log.Error("device request failed", "path", r.URL.Path, "error", err)
	}
	s.write(w, http.StatusInternalServerError, "internal", "internal error; the server's log has the cause")
}

func (s *Server) write(w http.ResponseWriter, status int, code, message string) {
	s.json(w, status, map[string]any{"error": map[string]string{"code": code, "message": message}})
}

func (s *Server) json(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // only plain structs of strings come here
		s.log.Error("encode answer", "error", err)
		status, b = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // the device is gone if this fails
}

func (s *Server) send(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // the device is gone if this fails
}
