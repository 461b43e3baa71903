"""WordPress and MariaDB of Debian as two images, the manifest of the app, and a person who uses it."""

from __future__ import annotations

from tests.stack.real.images import Recipe

DATABASE_ENTRY = """#!/bin/sh
# The first start makes the database; every start sets the account's password to what the app was given.
set -e
data=/var/lib/mysql
mkdir -p /run/mysqld
chown mysql:mysql /run/mysqld $data
if [ ! -d $data/mysql ]; then
  mariadb-install-db --user=mysql --datadir=$data --skip-test-db --auth-root-authentication-method=socket >/dev/null
fi
umask 077
cat > /run/mysqld/init.sql <<EOF
CREATE DATABASE IF NOT EXISTS wordpress;
CREATE OR REPLACE USER wordpress@'%' IDENTIFIED BY '$DATABASE_PASSWORD';
GRANT ALL ON wordpress.* TO wordpress@'%';
EOF
chown mysql /run/mysqld/init.sql
exec mariadbd --user=mysql --datadir=$data --init-file=/run/mysqld/init.sql
"""
DATABASE_SETTINGS = """[mariadbd]
bind-address = 0.0.0.0
skip-name-resolve
innodb_log_file_size = 8M
innodb_buffer_pool_size = 32M
key_buffer_size = 1M
performance_schema = off
"""
CONFIG = """<?php
define('DB_NAME', 'wordpress');
define('DB_USER', 'wordpress');
define('DB_PASSWORD', getenv('DATABASE_PASSWORD'));
define('DB_HOST', 'db');
define('DB_CHARSET', 'utf8mb4');
define('DB_COLLATE', '');
foreach (['AUTH', 'SECURE_AUTH', 'LOGGED_IN', 'NONCE'] as $name) {
  define($name . '_KEY', hash('sha256', $name . 'key' . getenv('SITE_KEY')));
  define($name . '_SALT', hash('sha256', $name . 'salt' . getenv('SITE_KEY')));
}
$table_prefix = 'wp_';
$_SERVER['HTTPS'] = 'on'; // TLS ends in front of the container
define('WP_CONTENT_DIR', '/var/lib/wordpress/wp-content');
define('WP_HTTP_BLOCK_EXTERNAL', true);
define('AUTOMATIC_UPDATER_DISABLED', true);
define('DISABLE_WP_CRON', true);
if (!defined('ABSPATH')) { define('ABSPATH', __DIR__ . '/'); }
require_once ABSPATH . 'wp-settings.php';
"""
SITE = """ServerName localhost
DocumentRoot /usr/share/wordpress
Alias /wp-content /var/lib/wordpress/wp-content
<Directory /usr/share/wordpress>
  Options FollowSymLinks
  Require all granted
  DirectoryIndex index.php
</Directory>
<Directory /var/lib/wordpress/wp-content>
  Options FollowSymLinks
  Require all granted
</Directory>
<IfModule mpm_prefork_module>
  StartServers 2
  MinSpareServers 1
  MaxSpareServers 4
</IfModule>
ErrorLog /dev/stderr
"""
WEB_ENTRY = """#!/bin/sh
set -e
export APACHE_RUN_USER=www-data APACHE_RUN_GROUP=www-data APACHE_RUN_DIR=/run/apache2 APACHE_LOCK_DIR=/run/lock
export APACHE_PID_FILE=/run/apache2/apache2.pid APACHE_LOG_DIR=/var/log/apache2
mkdir -p /run/apache2 /run/lock
rm -f $APACHE_PID_FILE
exec apache2 -D FOREGROUND
"""
DATABASE = Recipe(
    "fractal-test/mariadb:1",
    ("mariadb-server",),
    files={
        "/usr/local/bin/database": DATABASE_ENTRY,
        "/etc/mysql/mariadb.conf.d/90-app.cnf": DATABASE_SETTINGS,
    },
    shell=("rm -rf /var/lib/mysql/* /var/cache/apt/* /var/lib/apt/lists/* /var/log/*.log",),
    left_out=("/usr/bin/aria_*", "/usr/bin/myisam*", "/usr/share/mysql/*/errmsg.sys.bak"),
    settings=('CMD ["/usr/local/bin/database"]', "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
)
WEB = Recipe(
    "fractal-test/wordpress:1",
    (
        "wordpress",
        "wordpress-theme-twentytwentyone",
        "apache2",
        "libapache2-mod-php",
        "php-mysql",
        "php-gd",
        "php-xml",
    ),
    files={
        "/usr/local/bin/web": WEB_ENTRY,
        "/etc/apache2/sites-available/000-default.conf": SITE,
        "/usr/share/wordpress/wp-config.php": CONFIG,
    },
    shell=("rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/log/*.log",),
    settings=('CMD ["/usr/local/bin/web"]', "ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
)
RECIPES = (DATABASE, WEB)
MANIFEST = f"""\
name: wordpress
services:
  db:
    image: {DATABASE.name}
    environment:
      DATABASE_PASSWORD: ${{DATABASE_PASSWORD}}
    volumes: ["database:/var/lib/mysql"]
    healthcheck:
      test: ["CMD", "mariadb-admin", "ping", "--silent"]
      interval: 2s
      timeout: 5s
      retries: 10
      start_period: 60s
    restart: always
  web:
    image: {WEB.name}
    depends_on:
      db: {{condition: service_healthy}}
    environment:
      DATABASE_PASSWORD: ${{DATABASE_PASSWORD}}
      SITE_KEY: ${{SITE_KEY}}
    volumes: ["content:/var/lib/wordpress/wp-content"]
    ports: ["80"]
    restart: always
    x-homeserver:
      health: {{http: /wp-login.php, port: "80", interval: 1s, timeout: 5s, retries: 5, start_period: 60s}}
volumes:
  database:
  content:
x-homeserver:
  title: WordPress
  web: {{service: web, port: "80"}}
  secrets: {{generate: [DATABASE_PASSWORD, SITE_KEY]}}
"""
