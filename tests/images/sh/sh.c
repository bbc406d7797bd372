// sh is the shell of the e2e suite's images: busybox's, but that a lone command,
// as in sh -c env, is run as it is. Debian's busybox drops the variables of the
// environment whose names are none for a shell, which specs want to see; bash
// keeps them, but has other words than specs expect.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char path[64];

	if (argc == 3 && !strcmp(argv[1], "-c") && argv[2][0] && !argv[2][strspn(argv[2], "abcdefghijklmnopqrstuvwxyz")]) {
		snprintf(path, sizeof(path), "/bin/%s", argv[2]);
		execl(path, argv[2], (char *)NULL); // otherwise it is the shell's
	}
	execv("/bin/busybox", argv);
	perror("/bin/busybox");
	return 127;
}
