package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// Enrollment is what a device sends to become known.
type Enrollment struct {
	DeviceID string
	Hardware string
	Secret   [32]byte // of the enrollment token
	CSR      []byte   // PEM; its key is ed25519 or ECDSA P-256, its CN the device id
}

// Enrolled is what the device gets back.
type Enrolled struct {
	Device      Device
	Certificate []byte // PEM chain
	CA          []byte // PEM
	Root        []byte // first TUF root
	MQTTURL     string
}

// ReservedDeviceID is the identity with which otad speaks to an external broker;
// replicas append a dash and a name. The broker gives it rights over every
// device, so no device may have such an id.
const ReservedDeviceID = "otad"

// Reserved reports whether a device id is one of otad's own.
func Reserved(id string) bool {
	return id == ReservedDeviceID || strings.HasPrefix(id, ReservedDeviceID+"-")
}

// Enroll lets a device in by a token and gives it a certificate.
func (s *Service) Enroll(ctx context.Context, e Enrollment) (Enrolled, error) {
	if err := enrollable(e.DeviceID, e.Hardware); err != nil {
		return Enrolled{}, err
	}
	csr, err := parseCSR(e.CSR, e.DeviceID)
	if err != nil {
		return Enrolled{}, err
	}
	root, err := s.Store.Metadata(ctx, RoleRoot, 1)
	if errors.Is(err, ErrNotFound) {
		return Enrolled{}, fmt.Errorf("%w: the server has no trust root yet, run 'otactl key init' first", ErrConflict)
	} else if err != nil {
		return Enrolled{}, err
	}
	now := s.Now()
	d := Device{ID: e.DeviceID, Hardware: e.Hardware, KeyFingerprint: keyFingerprint(csr.RawSubjectPublicKeyInfo), CreatedAt: now}
	if d, err = s.Store.Enroll(ctx, d, sha256.Sum256(e.Secret[:]), now); err != nil {
		return Enrolled{}, err
	}
	chain, err := s.issue(ctx, csr, d.ID, now)
	if err != nil {
		return Enrolled{}, err
	}
	s.Look()
	s.Log.Info("device enrolled", "device", d.ID, "hardware", d.Hardware, "key", d.KeyFingerprint)
	return Enrolled{Device: d, Certificate: chain, CA: s.CA.RootPEM(), Root: root.Bytes, MQTTURL: s.MQTTURL}, nil
}

// Renew gives a known device a new certificate for the key it has.
func (s *Service) Renew(ctx context.Context, deviceID string, csrPEM []byte) ([]byte, error) {
	csr, err := parseCSR(csrPEM, deviceID)
	if err != nil {
		return nil, err
	}
	d, err := s.Admit(ctx, deviceID, keyFingerprint(csr.RawSubjectPublicKeyInfo))
	if err != nil {
		return nil, err
	}
	return s.issue(ctx, csr, d.ID, s.Now())
}

// Admit says whether a device with this certificate key may come in now.
// ErrDenied for an unknown or revoked device or another key.
func (s *Service) Admit(ctx context.Context, deviceID, fingerprint string) (Device, error) {
	d, err := s.known(ctx, deviceID)
	if err != nil {
		return Device{}, err
	}
	if d.KeyFingerprint == "" {
		return Device{}, fmt.Errorf("%w: device %s has no certificate", ErrDenied, deviceID)
	}
	if subtle.ConstantTimeCompare([]byte(d.KeyFingerprint), []byte(fingerprint)) != 1 {
		return Device{}, fmt.Errorf("%w: device %s has another key", ErrDenied, deviceID)
	}
	return d, nil
}

// Known is Admit where somebody else has compared the key: ErrDenied for an
// unknown or revoked device.
func (s *Service) Known(ctx context.Context, deviceID string) error {
	_, err := s.known(ctx, deviceID)
	return err
}

func (s *Service) known(ctx context.Context, deviceID string) (Device, error) {
	d, err := s.Store.Device(ctx, deviceID)
	switch {
	case errors.Is(err, ErrNotFound):
		return Device{}, fmt.Errorf("%w: device %s is not enrolled here", ErrDenied, deviceID)
	case err != nil:
		return Device{}, err
	case d.Revoked():
		return Device{}, fmt.Errorf("%w: device %s is revoked", ErrDenied, deviceID)
	}
	return d, nil
}

// AdmitCertificate is Admit for a verified client certificate. One of fleet
// provisioning stands for the device it was provisioned for; a claim is no device.
func (s *Service) AdmitCertificate(ctx context.Context, cert *x509.Certificate) (Device, error) {
	id := cert.Subject.CommonName
	switch {
	case strings.HasPrefix(id, ClaimName):
		return Device{}, fmt.Errorf("%w: a claim certificate is good for provisioning only", ErrDenied)
	case id == provisionedName:
		d, err := s.provisionedBy(ctx, cert)
		if err != nil {
			return Device{}, err
		}
		id = d.ID
	}
	return s.Admit(ctx, id, keyFingerprint(cert.RawSubjectPublicKeyInfo))
}

func keyFingerprint(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// MaxCSRBytes is the largest certificate request in PEM.
const MaxCSRBytes = 16 << 10

// parseCSR reads a request whose common name is the device's id.
func parseCSR(b []byte, deviceID string) (*x509.CertificateRequest, error) {
	csr, err := parseKeyRequest(b)
	if err == nil && csr.Subject.CommonName != deviceID {
		err = fmt.Errorf("%w: certificate request: its common name %.140q is not the device id %q", ErrInvalid, csr.Subject.CommonName, deviceID)
	}
	return csr, err
}

// parseKeyRequest reads a request of which only the key counts.
func parseKeyRequest(b []byte) (*x509.CertificateRequest, error) {
	bad := func(why string) (*x509.CertificateRequest, error) {
		return nil, fmt.Errorf("%w: certificate request: %s", ErrInvalid, why)
	}
	if len(b) > MaxCSRBytes {
		return bad(fmt.Sprintf("%d bytes, at most %d", len(b), MaxCSRBytes))
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return bad("want one PEM block CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return bad(err.Error())
	}
	if err := csr.CheckSignature(); err != nil {
		return bad("its signature does not fit its key")
	}
	switch k := csr.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return bad("want an ed25519 or ECDSA P-256 key")
		}
	default:
		return bad("want an ed25519 or ECDSA P-256 key")
	}
	return csr, nil
}

// RevokeDevice locks a device out for good and drops its session.
func (s *Service) RevokeDevice(ctx context.Context, id string) (DeviceRecord, error) {
	before, _ := s.pending(ctx, id)
	if err := s.Store.RevokeDevice(ctx, id, s.Now()); err != nil {
		return DeviceRecord{}, err
	}
	if len(before) > 0 { // they are REMOVED now: its last word before it is dropped
		s.tellRevoked(ctx, id, before)
	}
	s.signals.raise(revocation) // first the list, so that who is dropped can not come back
	s.evictNow(id, EvictedRevoked)
	s.Wake() // a stage may have waited for it
	return s.Device(ctx, id)
}

// DeviceRecord is a device with its shadow and whether it can be reached; its
// Connection says since when and why not.
type DeviceRecord struct {
	DeviceView
	Reachability Reachability
}

func (s *Service) record(v DeviceView) DeviceRecord {
	r := DeviceRecord{DeviceView: v}
	r.Reachability, r.Connection = s.Reachability(v.Device)
	r.LastSeen = s.lastSeen(v.Device)
	return r
}

// Device returns one device; ErrNotFound when there is none.
func (s *Service) Device(ctx context.Context, id string) (DeviceRecord, error) {
	d, err := s.Store.Device(ctx, id)
	if err != nil {
		return DeviceRecord{}, err
	}
	doc, err := s.Store.Shadow(ctx, id, "")
	if err != nil && !errors.Is(err, ErrNotFound) {
		return DeviceRecord{}, err
	}
	return s.record(DeviceView{Device: d, Shadow: doc}), nil
}

// DriftOf returns what a device was last brought, if it has drifted from that.
func (s *Service) DriftOf(ctx context.Context, deviceID string) (from ota.Execution, drifted bool, err error) {
	var all []ota.Execution
	err = s.Store.Executions(ctx, ExecutionFilter{DeviceID: deviceID}, func(e ota.Execution) bool {
		all = append(all, e)
		return true
	})
	from, drifted = ota.DriftedFrom(all)
	return from, drifted, err
}

// MaxPage is the most rows one list call returns.
const MaxPage = 1000

// Devices returns up to limit devices after the given id that the selector
// matches, and whether there are more.
func (s *Service) Devices(ctx context.Context, expr, after string, limit int) (page []DeviceRecord, more bool, err error) {
	sel, err := s.selector(ctx, expr)
	if err != nil {
		return nil, false, err
	}
	err = s.Store.SelectDevices(ctx, DeviceQuery{Selector: sel, After: after}, func(v DeviceView) bool {
		if len(page) == limit {
			more = true
			return false
		}
		page = append(page, s.record(v))
		return true
	})
	return page, more, err
}

// CountDevices is how many devices the selector means.
func (s *Service) CountDevices(ctx context.Context, expr string) (int, error) {
	sel, err := s.selector(ctx, expr)
	if err != nil {
		return 0, err
	}
	return s.Store.CountDevices(ctx, DeviceQuery{Selector: sel})
}

// selector reads a selector that the store is then asked with. One about who is
// online, or was when, is answered from the store: what this replica has heard goes there first.
func (s *Service) selector(ctx context.Context, expr string) (selector.Selector, error) {
	sel, err := selector.Parse(expr)
	if err == nil && (sel.Asks(selector.Online) || sel.Asks(selector.LastSeen)) {
		err = s.flushPresence(ctx)
	}
	return sel, err
}

// Defaults and limits of enrollment tokens.
const (
	DefaultTokenLife = 24 * time.Hour
	MaxTokenLife     = 366 * 24 * time.Hour
	MaxTokenUses     = 1_000_000
	MaxGlobBytes     = 256
)

// CreateEnrollmentToken stores a token for t's Uses, DeviceGlob, Hardware, Tags
// and ExpiresAt (zero: in DefaultTokenLife) and returns its secret, once.
func (s *Service) CreateEnrollmentToken(ctx context.Context, t EnrollmentToken) (EnrollmentToken, [32]byte, error) {
	now := s.Now()
	t.CreatedAt = now
	if t.Uses == 0 {
		t.Uses = 1
	}
	if t.ExpiresAt.IsZero() {
		t.ExpiresAt = now.Add(DefaultTokenLife)
	}
	if err := t.validate(now); err != nil {
		return EnrollmentToken{}, [32]byte{}, err
	}
	id, secret := newSecret()
	t.ID, t.SecretHash = id, sha256.Sum256(secret[:])
	return t, secret, s.Store.CreateEnrollmentToken(ctx, t)
}

func (t EnrollmentToken) validate(now time.Time) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: enrollment token: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	if t.Uses < 1 || t.Uses > MaxTokenUses {
		return bad("%d uses, want 1 to %d", t.Uses, MaxTokenUses)
	}
	if !t.ExpiresAt.After(now) || t.ExpiresAt.After(now.Add(MaxTokenLife)) {
		return bad("it must expire within %s from now", MaxTokenLife)
	}
	if len(t.DeviceGlob) > MaxGlobBytes {
		return bad("device pattern of %d bytes, at most %d", len(t.DeviceGlob), MaxGlobBytes)
	}
	if _, err := path.Match(t.DeviceGlob, "x"); err != nil {
		return bad("device pattern %q: %v", t.DeviceGlob, err)
	}
	if t.Hardware != "" {
		if err := ota.ValidateWord("hardware model", t.Hardware); err != nil {
			return err
		}
	}
	return validateTags(t.Tags)
}

// ChangeTags sets and removes tags of a device.
func (s *Service) ChangeTags(ctx context.Context, id string, set map[string]string, remove []string) (DeviceRecord, error) {
	if _, err := MergeTags(nil, set, remove); err != nil {
		return DeviceRecord{}, err
	}
	if err := s.Store.ChangeTags(ctx, id, set, remove); err != nil {
		return DeviceRecord{}, err
	}
	s.Look()
	s.Log.Info("device tags changed", "device", id)
	return s.Device(ctx, id)
}

// MergeTags is what a device's tags become. ErrInvalid: a tag is both set and
// removed, is no tag, or they would be more than MaxTags. It changes neither map.
func MergeTags(have, set map[string]string, remove []string) (map[string]string, error) {
	tags := maps.Clone(have)
	if tags == nil {
		tags = map[string]string{}
	}
	for _, k := range remove {
		if _, both := set[k]; both {
			return nil, fmt.Errorf("%w: tag %s is set and removed at once", ErrInvalid, k)
		}
		if err := ota.ValidateWord("tag", k); err != nil {
			return nil, err
		}
		delete(tags, k)
	}
	maps.Copy(tags, set)
	return tags, validateTags(tags)
}

func validateTags(tags map[string]string) error {
	if len(tags) > MaxTags {
		return fmt.Errorf("%w: %d tags, at most %d", ErrInvalid, len(tags), MaxTags)
	}
	for k, v := range tags {
		if err := ota.ValidateWord("tag", k); err != nil {
			return err
		}
		if len(v) > MaxTagValueBytes {
			return fmt.Errorf("%w: tag %s has %d bytes, at most %d", ErrInvalid, k, len(v), MaxTagValueBytes)
		}
	}
	return nil
}

const apiTokenPrefix = "otat_"

// CreateAPIToken stores an operator's token and returns it, once.
func (s *Service) CreateAPIToken(ctx context.Context, name string) (string, error) {
	id, secret := newSecret()
	t := APIToken{ID: id, Name: name, SecretHash: sha256.Sum256(secret[:]), CreatedAt: s.Now()}
	if err := s.Store.CreateAPIToken(ctx, t); err != nil {
		return "", err
	}
	return apiTokenPrefix + id + "_" + base64.RawURLEncoding.EncodeToString(secret[:]), nil
}

// Authenticate returns the API token that text is; ErrDenied when it is none.
func (s *Service) Authenticate(ctx context.Context, text string) (APIToken, error) {
	denied := fmt.Errorf("%w: unknown or expired API token", ErrDenied)
	rest, ok := strings.CutPrefix(text, apiTokenPrefix)
	id, encoded, ok2 := strings.Cut(rest, "_")
	secret, err := base64.RawURLEncoding.DecodeString(encoded)
	if !ok || !ok2 || err != nil || len(secret) != 32 {
		return APIToken{}, denied
	}
	t, err := s.Store.APIToken(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return APIToken{}, denied
	} else if err != nil {
		return APIToken{}, err
	}
	sum := sha256.Sum256(secret)
	if subtle.ConstantTimeCompare(sum[:], t.SecretHash[:]) != 1 {
		return APIToken{}, denied
	}
	if !t.ExpiresAt.IsZero() && !t.ExpiresAt.After(s.Now()) {
		return APIToken{}, denied
	}
	return t, nil
}
