/* SPDX-License-Identifier: Apache-2.0 */
/* mknetdev NAME QUEUES: a lasting multi-queue tap interface, which busybox cannot make. */
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open("/dev/net/tun", O_RDWR);

    if (argc != 3 || strlen(argv[1]) >= IFNAMSIZ) {
        fprintf(stderr, "usage: mknetdev NAME QUEUES\n");
        return 2;
    }
    strcpy(request.ifr_name, argv[1]);
    if (atoi(argv[2]) > 1)
        request.ifr_flags |= IFF_MULTI_QUEUE;
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0 || ioctl(fd, TUNSETPERSIST, 1) < 0) {
        perror("mknetdev");
        return 1;
    }
    return 0;
}
