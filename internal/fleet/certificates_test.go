package fleet_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// given gives a device a certificate with the serial number.
func (w *world) given(id string, serial int64) {
	w.t.Helper()
	w.ok(w.store.PutCertificate(w.ctx, fleet.Certificate{DeviceID: id, Serial: big.NewInt(serial), Ends: time.Now().Add(fleet.RevocationListRefresh * 2)}, time.Now()))
}

// lists returns the signed lists and the one of devices as parsed.
func (w *world) lists() ([]byte, *x509.RevocationList) {
	w.t.Helper()
	text, err := w.s.RevocationLists(w.ctx)
	w.ok(err)
	block, rest := pem.Decode(text)
	if second, _ := pem.Decode(rest); block == nil || second == nil {
		w.t.Fatalf("not two lists in PEM: %s", text)
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	w.ok(err)
	return text, list
}

func serials(l *x509.RevocationList) string {
	var out []string
	for _, e := range l.RevokedCertificateEntries {
		out = append(out, e.SerialNumber.String())
	}
	return fmt.Sprint(out)
}

// Every list that differs has a later date, however fast they follow each other:
// a broker that holds two of one date may keep to the older.
func TestRevocationListsHaveADateOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(3, "board")
		for i, id := range ids {
			w.given(id, 10+int64(i))
		}
		first, list := w.lists()
		if len(list.RevokedCertificateEntries) != 0 {
			t.Errorf("nobody was revoked: %s", serials(list))
		}
		at, number := list.ThisUpdate, list.Number
		for i := range ids {
			_, err := w.s.RevokeDevice(w.ctx, ids[i])
			w.ok(err)
			text, list := w.lists()
			if n := len(list.RevokedCertificateEntries); n < i+1 || !list.ThisUpdate.After(at) || list.Number.Cmp(number) <= 0 || bytes.Equal(text, first) {
				t.Errorf("list %d: %d entries of %s, number %d after %d", i, n, list.ThisUpdate, list.Number, number)
			}
			if list.ThisUpdate.After(time.Now()) {
				t.Errorf("list %d begins in the future: %s", i, list.ThisUpdate)
			}
			at, number = list.ThisUpdate, list.Number
			if again, _ := w.lists(); !bytes.Equal(again, text) {
				t.Errorf("list %d was made again without need", i)
			}
		}
		before, old := w.lists()
		time.Sleep(fleet.RevocationListRefresh)
		after, list := w.lists()
		if bytes.Equal(before, after) || !list.ThisUpdate.After(old.ThisUpdate) {
			t.Error("the list was not made anew in time")
		}
		if left := time.Until(list.NextUpdate); left < fleet.RevocationListLife-time.Minute {
			t.Errorf("it is good for %s", left)
		}
		time.Sleep(fleet.RevocationListRefresh) // the certificates of this test have ended
		_, list = w.lists()
		for _, e := range list.RevokedCertificateEntries {
			if n := e.SerialNumber; n.IsInt64() && n.Int64() < 100 { // others may begin with the same digits
				t.Errorf("what has ended is still listed: %s", serials(list))
			}
		}
	})
}

// What enrollment and renewal hand out can be revoked: they remember it before.
func TestEveryDeviceCertificateCanBeRevoked(t *testing.T) {
	w := newWorld(t)
	request := csr(t, "gw-1")
	enrolled, err := w.s.Enroll(w.ctx, fleet.Enrollment{DeviceID: "gw-1", Hardware: "h", Secret: w.token(fleet.EnrollmentToken{Uses: 1}), CSR: request})
	w.ok(err)
	renewed, err := w.s.Renew(w.ctx, "gw-1", request)
	w.ok(err)
	_, err = w.s.RevokeDevice(w.ctx, "gw-1")
	w.ok(err)
	_, list := w.lists()
	revoked := serials(list)
	for _, chain := range [][]byte{enrolled.Certificate, renewed} {
		block, _ := pem.Decode(chain)
		leaf, err := x509.ParseCertificate(block.Bytes)
		w.ok(err)
		if !strings.Contains(revoked, leaf.SerialNumber.String()) {
			t.Errorf("certificate %s is not in %s", leaf.SerialNumber, revoked)
		}
	}
}

// So does fleet provisioning: a certificate that stands for a device is revoked with it,
// and that of a claim with its token, used or not.
func TestCertificatesOfProvisioningCanBeRevoked(t *testing.T) {
	w := newWorld(t)
	used, _, usedCert := w.claimOf(fleet.EnrollmentToken{Uses: 1})
	unused, _, unusedCert := w.claimOf(fleet.EnrollmentToken{Uses: 1})
	_, _, keptCert := w.claimOf(fleet.EnrollmentToken{Uses: 1})
	c := w.candidate(used.ID)
	_, err := w.s.Provision(w.ctx, serial(used.ID, c.Ownership, "sn-1"))
	w.ok(err)
	deviceCert := w.certificate(c.PEM)
	if _, list := w.lists(); len(list.RevokedCertificateEntries) != 0 {
		t.Fatalf("listed before: %s", serials(list))
	}
	_, err = w.s.RevokeDevice(w.ctx, "sn-1")
	w.ok(err)
	w.ok(w.s.RevokeEnrollmentToken(w.ctx, used.ID))
	w.ok(w.s.RevokeEnrollmentToken(w.ctx, unused.ID))
	check := func(when string) {
		t.Helper()
		_, list := w.lists()
		for what, cert := range map[string]*x509.Certificate{"the device's": deviceCert, "the used claim's": usedCert, "the unused claim's": unusedCert} {
			if !strings.Contains(serials(list), cert.SerialNumber.String()) {
				t.Errorf("%s: %s certificate %s is not in %s", when, what, cert.SerialNumber, serials(list))
			}
		}
		if strings.Contains(serials(list), keptCert.SerialNumber.String()) {
			t.Errorf("%s: the certificate of a claim that is good is listed", when)
		}
	}
	check("revoked")
	w.forget("sn-1")
	check("deleted")
	_, err = w.s.AdmitCertificate(w.ctx, deviceCert)
	w.wantErr(err, fleet.ErrDenied)
}

// A list that could not be saved is saved at the next look, and one that was is
// left alone.
func TestRevocationListsAreSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		id := w.enroll(1, "board")[0]
		saved, full := make(chan []byte, 10), new(atomic.Bool)
		full.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- w.s.RunRevocationLists(ctx, func(b []byte) error {
				if full.Load() {
					return errors.New("the disk is full")
				}
				saved <- b
				return nil
			})
		}()
		synctest.Wait()
		full.Store(false)
		time.Sleep(3 * fleet.EvictionPoll)
		synctest.Wait()
		if len(saved) != 1 {
			t.Fatalf("saved %d times", len(saved))
		}
		_, err := w.s.RevokeDevice(w.ctx, id)
		w.ok(err)
		synctest.Wait() // at once, where it was done
		now, _ := w.lists()
		if len(saved) != 2 {
			t.Fatalf("saved %d times", len(saved))
		}
		if <-saved; !bytes.Equal(<-saved, now) {
			t.Error("saved another list")
		}
		cancel()
		<-done
	})
}
