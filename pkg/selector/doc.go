// Package selector reads and evaluates the expressions that say which devices
// a group, a rollout or a query means, such as
//
//	hardware = "rpi4" AND tags.site = "paris" AND shadow.reported.battery > 20
//
// The syntax is that of AIP-160 (https://google.aip.dev/160). The fields are
//
//	id, hardware               text
//	online                     true or false; missing when nothing was ever heard of it
//	lastSeen                   a moment; missing when it was never heard of
//	groups                     names of groups; only : is of use, groups:"canary"
//	tags.KEY                   text; tags."a-b" when the key is not one word
//	shadow.reported.a.b        any JSON value at that path of the classic shadow
//	shadow.desired.a.b         likewise
//
// The operators are = != < <= > >= and : (has), AND, OR, NOT, - (also not) and
// parentheses. OR binds tighter than AND, as AIP-160 has it: a AND b OR c is
// a AND (b OR c). Two comparisons side by side are joined by AND.
//
// What a comparison means depends on the types of both sides:
//
//   - text compares byte by byte. With = and != a * at either end of the value
//     stands for any text: "rpi*", "*-beta", "*pi*".
//   - numbers compare by value, exactly: 1 = 1.0.
//   - true and false, without quotes, compare with = and != only. They match the
//     text of the same letters too.
//   - lastSeen compares with a moment in quotes, as RFC 3339 writes it, to the
//     microsecond at the finest: lastSeen < "2026-11-01T00:00:00Z".
//   - : on text looks for a part of it, on an object or on tags for a key, on an
//     array for an element, and is = on the rest. field:* asks whether the
//     field is there at all.
//   - any other pair of types does not match. A field that is missing matches
//     nothing, not even !=, so that NOT shadow.reported.online = false holds for
//     devices that never said, and shadow.reported.online != false does not.
//
// The package evaluates in memory and knows no database and no other package of
// the project; Facts is all it sees of a device.
package selector
