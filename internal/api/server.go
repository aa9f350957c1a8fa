// Package api is the operator plane: Connect services (gRPC, gRPC-Web and JSON)
// and the upload of image objects, over internal/fleet. It authenticates every
// call by an API token, maps proto to fleet and fleet's errors to codes, in one
// table. It holds no rules.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
	otadv1 "github.com/otad/otad/proto/otad/v1"
	"github.com/otad/otad/proto/otad/v1/otadv1connect"
)

// MaxRequestBytes is the largest Connect request: a release carries its index.
const MaxRequestBytes = 64 << 20

// New returns the handler of the operator plane. What it does not know goes to
// more, behind the same authentication.
func New(f *fleet.Service, log *slog.Logger, more http.Handler) http.Handler {
	s := &server{fleet: f, log: log}
	return timed(s.authenticate(s.routes(more)), StallTimeout)
}

func (s *server) routes(more http.Handler) http.Handler {
	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(MaxRequestBytes),
		connect.WithInterceptors(errorMapper{s.log}),
	}
	mux := http.NewServeMux()
	mux.Handle(otadv1connect.NewTrustServiceHandler(trustHandler{s}, options...))
	mux.Handle(otadv1connect.NewFirmwareServiceHandler(firmwareHandler{s}, options...))
	mux.Handle(otadv1connect.NewRolloutServiceHandler(rolloutHandler{s}, options...))
	mux.Handle(otadv1connect.NewCommandServiceHandler(commandHandler{s}, options...))
	mux.Handle(otadv1connect.NewEventServiceHandler(eventHandler{s}, options...))
	mux.Handle(otadv1connect.NewWebhookServiceHandler(webhookHandler{s}, options...))
	mux.Handle(otadv1connect.NewDeviceServiceHandler(deviceHandler{s}, options...))
	mux.Handle(otadv1connect.NewGroupServiceHandler(groupHandler{s}, options...))
	mux.Handle(otadv1connect.NewShadowServiceHandler(shadowHandler{s}, options...))
	mux.HandleFunc("PUT /v1/images/{digest}", s.upload)
	mux.Handle("/", more)
	return mux
}

type server struct {
	fleet *fleet.Service
	log   *slog.Logger
}

// authenticate is the one place where a call is let in.
func (s *server) authenticate(next http.Handler) http.Handler {
	denied := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, answer := http.StatusUnauthorized, connect.NewError(connect.CodeUnauthenticated, errors.New("unknown or expired API token"))
		if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
			who, err := s.fleet.Authenticate(r.Context(), token)
			if err == nil {
				next.ServeHTTP(w, r.WithContext(fleet.WithPrincipal(r.Context(), who.Name)))
				return
			}
			if !errors.Is(err, fleet.ErrDenied) { // the token may be good: the client must not throw it away
				s.log.Error("authentication failed", "error", err)
				status, answer = http.StatusInternalServerError, connect.NewError(connect.CodeInternal, errInternal)
				if errors.Is(err, fleet.ErrUnavailable) {
					status, answer = http.StatusServiceUnavailable, connect.NewError(connect.CodeUnavailable, fleet.ErrUnavailable)
				}
			}
		}
		if denied.IsSupported(r) {
			_ = denied.Write(w, r, answer) // the client is gone if this fails
			return
		}
		fail(w, status, answer.Code().String(), answer.Message())
	})
}

// upload streams an image object into the blob store.
func (s *server) upload(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength > ota.MaxImageBytes { // said before a byte of it is sent
		fail(w, http.StatusRequestEntityTooLarge, connect.CodeResourceExhausted.String(), fmt.Sprintf("an image object has at most %d bytes, not %d", int64(ota.MaxImageBytes), r.ContentLength))
		return
	}
	size, err := s.fleet.UploadImage(r.Context(), r.PathValue("digest"), r.Body)
	if err == nil {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]int64{"size": size}) // the client is gone if this fails
		return
	}
	if status, code, text, broken := brokenOff(r.Body); broken {
		s.log.Info("upload broke off", "digest", r.PathValue("digest"), "error", err)
		fail(w, status, code.String(), text)
		return
	}
	switch code := codeOf(err); code {
	case connect.CodeInvalidArgument:
		fail(w, http.StatusBadRequest, code.String(), err.Error())
	case connect.CodeAlreadyExists, connect.CodeAborted:
		fail(w, http.StatusConflict, code.String(), err.Error())
	case connect.CodeResourceExhausted:
		fail(w, http.StatusRequestEntityTooLarge, code.String(), err.Error())
	case connect.CodeUnavailable:
		s.log.Error("upload failed", "digest", r.PathValue("digest"), "error", err)
		fail(w, http.StatusServiceUnavailable, code.String(), fleet.ErrUnavailable.Error())
	default:
		s.log.Error("upload failed", "digest", r.PathValue("digest"), "error", err)
		fail(w, http.StatusInternalServerError, connect.CodeInternal.String(), "the upload was not stored; the server's log has the cause")
	}
}

// fail answers in the JSON error shape of the Connect protocol.
func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": code, "message": message}) // the client is gone if this fails
}

// codes is the table from an error's class to the API's code. The first row
// that fits counts.
var codes = []struct {
	class error
	code  connect.Code
}{
	{fleet.ErrUnavailable, connect.CodeUnavailable},
	{fleet.ErrDoubt, connect.CodeUnknown},
	{fleet.ErrNoDevices, connect.CodeFailedPrecondition},
	{fleet.ErrUntagged, connect.CodeFailedPrecondition},
	{fleet.ErrUnsigned, connect.CodeFailedPrecondition},
	{fleet.ErrOutranked, connect.CodeFailedPrecondition},
	{ota.ErrState, connect.CodeFailedPrecondition},
	{fleet.ErrDropped, connect.CodeOutOfRange},
	{fleet.ErrNotFound, connect.CodeNotFound},
	{fleet.ErrStale, connect.CodeAborted},
	{fleet.ErrBusy, connect.CodeAborted},
	{fleet.ErrConflict, connect.CodeAlreadyExists},
	{fleet.ErrDenied, connect.CodePermissionDenied},
	{fleet.ErrInvalid, connect.CodeInvalidArgument},
	{blob.ErrTooLarge, connect.CodeResourceExhausted},
	{context.Canceled, connect.CodeCanceled},
	{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
}

func codeOf(err error) connect.Code {
	var syntax *selector.SyntaxError
	if errors.As(err, &syntax) {
		return connect.CodeInvalidArgument
	}
	var fault *shadow.Error
	if errors.As(err, &fault) {
		switch fault.Code {
		case 404:
			return connect.CodeNotFound
		case 409:
			return connect.CodeAborted
		}
		return connect.CodeInvalidArgument
	}
	for _, row := range codes {
		if errors.Is(err, row.class) {
			return row.code
		}
	}
	return connect.CodeInternal
}

var errInternal = errors.New("internal error; the server's log has the cause")

// faults are ours or of the database, and all that a client is told of them.
var faults = map[connect.Code]error{
	connect.CodeInternal:    errInternal,
	connect.CodeUnavailable: fleet.ErrUnavailable,
	connect.CodeUnknown:     fleet.ErrDoubt,
}

// plain is an error whose text leaves out the class that its code says.
type plain struct{ error }

func (p plain) Error() string {
	text := p.error.Error()
	for _, class := range []error{fleet.ErrConflict, fleet.ErrDenied} {
		text = strings.TrimSuffix(text, ": "+class.Error())
	}
	return text
}

func (p plain) Unwrap() error { return p.error }

// errorMapper turns what a handler returns into a Connect error. The text of a fault
// of ours, or of the database, stays in the log.
type errorMapper struct{ log *slog.Logger }

func (m errorMapper) wrap(procedure string, err error) error {
	var done *connect.Error
	if err == nil || errors.As(err, &done) {
		return err
	}
	code := codeOf(err)
	if shown, ok := faults[code]; ok {
		m.log.Error("call failed", "procedure", procedure, "error", err)
		return connect.NewError(code, shown)
	}
	var syntax *selector.SyntaxError
	if errors.As(err, &syntax) {
		err = fmt.Errorf("%w\n%s", err, syntax.Caret())
	}
	out := connect.NewError(code, plain{err})
	if field := ota.FieldOf(err); field != "" {
		if detail, err := connect.NewErrorDetail(&otadv1.Refusal{Field: field}); err == nil {
			out.AddDetail(detail)
		}
	}
	return out
}

func (m errorMapper) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, r)
		return res, m.wrap(r.Spec().Procedure, err)
	}
}

func (m errorMapper) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (m errorMapper) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		return m.wrap(c.Spec().Procedure, next(ctx, c))
	}
}
