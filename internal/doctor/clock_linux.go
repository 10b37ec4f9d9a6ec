package doctor

import "golang.org/x/sys/unix"

// clockSynchronised asks the kernel whether something, NTP as a rule, disciplines the clock; known is false where it does not say.
func clockSynchronised() (synchronised, known bool) {
	var t unix.Timex // without modes it only reads
	if _, err := unix.Adjtimex(&t); err != nil {
		return false, false
	}
	return t.Status&unix.STA_UNSYNC == 0, true
}
