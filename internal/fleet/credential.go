package fleet

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"
	"unicode"

	"github.com/otad/otad/pkg/ota"
)

// CredentialKind is the way in which a credential proves who a device is.
type CredentialKind string

// The kinds of credentials. A device certificate is none of them: its key stands
// in the device itself.
const (
	// CredentialPassword is a secret that the device sends; a device has one at most.
	CredentialPassword CredentialKind = "password"
	// CredentialKey is a public key with whose private half the device signs JWTs.
	CredentialKey CredentialKind = "key"
)

// Credential is what a device may prove its id with, beside a certificate.
type Credential struct {
	DeviceID string
	ID       string // 16 hex digits
	Kind     CredentialKind
	// Secret is the password's argon2id hash in PHC form, or the key in PEM
	// (PUBLIC KEY). Neither lets anybody in by itself.
	Secret    string
	KeyID     string // kid of the JWTs that it verifies, empty: any
	CreatedAt time.Time
}

// Issuer is a party whose JWTs say which device somebody is.
type Issuer struct {
	Name       string // the claim iss, byte for byte
	Keys       []IssuerKey
	DeviceGlob string // the ids it may vouch for, with *; empty: any
	CreatedAt  time.Time
}

// IssuerKey is one public key of an Issuer.
type IssuerKey struct {
	KeyID string `json:"kid,omitempty"` // empty: it verifies tokens of any kid
	PEM   string `json:"pem"`
}

// Limits of credentials.
const (
	MaxCredentials   = 8 // of one device, so that a login tries few keys
	MaxIssuers       = 64
	MaxIssuerKeys    = 16
	MaxIssuerBytes   = 256 // of an issuer's name
	MaxKeyIDBytes    = 128
	MinPasswordBytes = 12 // of one that an operator chooses
	MaxPasswordBytes = 512
)

// CreateDevice makes a device known that has no key yet and will come in with
// another credential. ErrConflict when the id is taken.
func (s *Service) CreateDevice(ctx context.Context, d Device) (DeviceRecord, error) {
	if err := ota.ValidateDeviceID(d.ID); err != nil {
		return DeviceRecord{}, err
	}
	if Reserved(d.ID) {
		return DeviceRecord{}, fmt.Errorf("%w: device id %q is a name of the server itself; choose another", ErrInvalid, d.ID)
	}
	if err := ota.ValidateWord("hardware model", d.Hardware); err != nil {
		return DeviceRecord{}, err
	}
	if err := validateTags(d.Tags); err != nil {
		return DeviceRecord{}, err
	}
	d = Device{ID: d.ID, Hardware: d.Hardware, Tags: d.Tags, CreatedAt: s.Now()}
	if err := s.Store.CreateDevice(ctx, d); err != nil {
		return DeviceRecord{}, err
	}
	s.Look()
	s.Log.Info("device created", "device", d.ID, "hardware", d.Hardware)
	return s.Device(ctx, d.ID)
}

// SetPassword gives the device a password in place of the one it may have, and
// ends its session. An empty one is made here: the text comes back, once.
func (s *Service) SetPassword(ctx context.Context, deviceID, password string) (c Credential, generated string, err error) {
	cost := costChosen
	if password == "" {
		generated = newPassword()
		password, cost = generated, costGenerated
	} else if err := validatePassword(password); err != nil {
		return Credential{}, "", err
	}
	c = s.newCredential(deviceID, CredentialPassword)
	if c.Secret, err = s.passwords.hash(ctx, []byte(password), cost); err != nil {
		return Credential{}, "", err
	}
	if err := s.putCredential(ctx, c); err != nil {
		return Credential{}, "", err
	}
	return c, generated, nil
}

// PasswordPrefix starts every password that the server made, so that people and
// secret scanners know it when they see it.
const PasswordPrefix = "otap_"

// newPassword returns 256 random bits as text.
func newPassword() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return PasswordPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

func validatePassword(p string) error {
	bad := func(why string) error { return fmt.Errorf("%w: password: %s", ErrInvalid, why) }
	switch {
	case len(p) < MinPasswordBytes:
		return bad(fmt.Sprintf("%d bytes, at least %d; leave it out and the server makes one", len(p), MinPasswordBytes))
	case len(p) > MaxPasswordBytes:
		return bad(fmt.Sprintf("%d bytes, at most %d", len(p), MaxPasswordBytes))
	case strings.ContainsFunc(p, unicode.IsControl):
		return bad("it holds a control character, such as the end of a line")
	case looksLikeJWT([]byte(p)) || looksLikeClaim([]byte(p)):
		return bad("it looks like a token; choose another")
	}
	return nil
}

// AddKey lets the device in with JWTs that the private half of the key signs.
// keys is one public key in PEM or a JWKS of one. ErrConflict when the device
// has it already or has MaxCredentials.
func (s *Service) AddKey(ctx context.Context, deviceID string, keys []byte) (Credential, error) {
	parsed, err := ParseKeys(keys)
	if err != nil {
		return Credential{}, err
	}
	if len(parsed) != 1 {
		return Credential{}, fmt.Errorf("%w: %d keys, want one at a time", ErrInvalid, len(parsed))
	}
	c := s.newCredential(deviceID, CredentialKey)
	c.Secret, c.KeyID = parsed[0].PEM, parsed[0].KeyID
	return c, s.putCredential(ctx, c)
}

func (s *Service) newCredential(deviceID string, kind CredentialKind) Credential {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return Credential{DeviceID: deviceID, ID: hex.EncodeToString(b[:]), Kind: kind, CreatedAt: s.Now()}
}

func (s *Service) putCredential(ctx context.Context, c Credential) error {
	if err := s.Store.PutCredential(ctx, c); err != nil {
		return err
	}
	s.Log.Info("credential stored", "device", c.DeviceID, "credential", c.ID, "kind", c.Kind)
	if c.Kind == CredentialPassword { // whoever has the old one is not to stay
		s.evictNow(c.DeviceID, EvictedCredential)
	}
	return nil
}

// DeleteCredential takes the credential away and ends the device's session,
// which may have begun with it.
func (s *Service) DeleteCredential(ctx context.Context, deviceID, id string) error {
	if err := s.Store.DeleteCredential(ctx, deviceID, id, s.Now()); err != nil {
		return err
	}
	s.Log.Info("credential deleted", "device", deviceID, "credential", id)
	s.evictNow(deviceID, EvictedCredential)
	return nil
}

// AddIssuer lets in devices that JWTs of the issuer name. keys is a JWKS or
// public keys in PEM. ErrConflict when there is one of that name.
func (s *Service) AddIssuer(ctx context.Context, name, deviceGlob string, keys []byte) (Issuer, error) {
	bad := func(format string, args ...any) (Issuer, error) {
		return Issuer{}, fmt.Errorf("%w: JWT issuer: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	if name == "" || len(name) > MaxIssuerBytes || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return bad("name %.300q: want 1 to %d printable bytes, as they stand in iss", name, MaxIssuerBytes)
	}
	if len(deviceGlob) > MaxGlobBytes {
		return bad("device pattern of %d bytes, at most %d", len(deviceGlob), MaxGlobBytes)
	}
	if _, err := path.Match(deviceGlob, "x"); err != nil {
		return bad("device pattern %q: %v", deviceGlob, err)
	}
	parsed, err := ParseKeys(keys)
	if err != nil {
		return Issuer{}, err
	}
	i := Issuer{Name: name, Keys: parsed, DeviceGlob: deviceGlob, CreatedAt: s.Now()}
	if err := s.Store.CreateIssuer(ctx, i); err != nil {
		return Issuer{}, err
	}
	s.Log.Info("JWT issuer added", "issuer", name, "keys", len(parsed), "devices", deviceGlob)
	return i, nil
}

// DeleteIssuer no longer believes the issuer. Sessions that began with a JWT of
// its end within EvictionPoll, on every replica.
func (s *Service) DeleteIssuer(ctx context.Context, name string) error {
	if err := s.Store.DeleteIssuer(ctx, name); err != nil {
		return err
	}
	s.Log.Info("JWT issuer deleted", "issuer", name)
	return nil
}

// vouches reports whether the issuer may name the device.
func (i Issuer) vouches(deviceID string) bool {
	if i.DeviceGlob == "" {
		return true
	}
	ok, err := path.Match(i.DeviceGlob, deviceID)
	return err == nil && ok
}

// voucher tells the issuer from another one of its name that comes after it: with
// other keys, or for other devices.
func (i Issuer) voucher() string { return fmt.Sprintf("%d %s", i.CreatedAt.UnixMicro(), i.Name) }

// issuer returns the one of that name; ErrDenied when there is none.
func (s *Service) issuer(ctx context.Context, name string) (Issuer, error) {
	all, err := s.Store.Issuers(ctx)
	if err != nil {
		return Issuer{}, err
	}
	for _, i := range all {
		if i.Name == name {
			return i, nil
		}
	}
	return Issuer{}, fmt.Errorf("%w: JWT issuer %.140q is not known here", ErrDenied, name)
}

// password returns the device's password credential; nil when it has none.
func (s *Service) password(ctx context.Context, deviceID string) (*Credential, error) {
	all, err := s.Store.Credentials(ctx, deviceID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	for _, c := range all {
		if c.Kind == CredentialPassword {
			return &c, nil
		}
	}
	return nil, nil
}
